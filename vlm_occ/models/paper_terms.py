"""The losses of the paper's systems (eq. 4 and eq. 13) as named terms; weigh them with PAPER_WEIGHTS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_occ.heads.depth import DepthBins
from vlm_occ.losses.depth import depth_focal
from vlm_occ.losses.geometric import (
    box_terms,
    cell_depth,
    class_losses,
    image_boxes,
    mask_focal,
    referred_voxels,
)
from vlm_occ.losses.grounding2d import image_grounding_terms
from vlm_occ.losses.occupancy import Term, term
from vlm_occ.models.groundingocc_config import GroundingOccConfig
from vlm_occ.models.paper_batch import PaperOutput, PictureGrounding, QueryBatch, SceneView, SentenceOutput
from vlm_occ.types import FREE, GroundingQuery, SceneLabels, VoxelGrid


def paper_terms(
    output: PaperOutput,
    batch: QueryBatch,
    labels: Sequence[SceneLabels],
    config: GroundingOccConfig,
    *,
    grid: VoxelGrid | None = None,
    depths: Sequence[Tensor] | None = None,
) -> dict[str, Term]:
    """L_occ, L_3D, and with their modules L_2D and L_dmap; a term counts sentences, cells or pictures.

    `depths`: the true depth of each scene's cells (`true_depth`), where it was kept.
    """
    grid = grid or VoxelGrid()
    terms: dict[str, Term] = {}
    scenes = zip(output.views, output.sentences, batch.queries, labels, strict=True)
    for number, (view, said, queries, truth) in enumerate(scenes):
        if said is not None:
            _add(terms, occupancy_terms(said, view.voxels, queries, truth, config, grid))
            rows = [list(query.targets) for query in queries]
            layers = list(zip(said.proposals.boxes, said.proposals.class_logits, strict=True))
            _add(
                terms,
                box_terms(layers, [truth.boxes[r] for r in rows], [truth.classes[r] for r in rows]),
            )
            if said.pictures is not None:
                _add(terms, picture_terms(said.pictures, view, queries, truth))
        if view.depth_logits is not None:
            depth = depths[number] if depths else true_depth(view, truth, config, grid)
            _add(terms, {"depth": depth_term(view, depth)})
    return terms


def _add(terms: dict[str, Term], more: dict[str, Term]) -> None:
    for name, item in more.items():
        old = terms.get(name)
        terms[name] = item if old is None else Term(old.total + item.total, old.count + item.count)


def occupancy_terms(
    said: SentenceOutput,
    voxels: Tensor,
    queries: Sequence[GroundingQuery],
    truth: SceneLabels,
    config: GroundingOccConfig,
    grid: VoxelGrid,
) -> dict[str, Term]:
    """Cross-entropy, Lovasz and affinities of each kind of supervision, and the mask's focal loss.

    `voxels` long [M]: those that were decoded.
    """
    semantics = truth.semantics.flatten()[voxels].long()
    affinities = {"geo_affinity": config.geo_affinity, "sem_affinity": config.sem_affinity}
    values = {"mask": mask_focal(said.mask_logits, semantics != FREE)}  # [N]
    if said.semantic_logits is not None:
        labels = semantics.expand(len(queries), -1)
        losses = class_losses(said.semantic_logits, labels, free=FREE, **affinities)
        values.update({f"semantic_{name}": value for name, value in losses.items()})
    if said.geometric_logits is not None:
        rows = [query.targets for query in queries]
        referred = referred_voxels(truth.boxes, rows, grid, device=voxels.device)[:, voxels]
        occupied = semantics != FREE
        labels = occupied.long() + (referred & occupied)  # [N, M]
        losses = class_losses(said.geometric_logits, labels, free=0, **affinities)
        values.update({f"geometric_{name}": value for name, value in losses.items()})
    return {name: term(items) for name, items in values.items()}


def picture_terms(
    pictures: PictureGrounding, view: SceneView, queries: Sequence[GroundingQuery], truth: SceneLabels
) -> dict[str, Term]:
    """L_2D; a sentence's first object is the one that a picture shows, a sentence without one shows none."""
    rows, grounding = pictures.rows, pictures.predicted
    first = torch.tensor([q.targets[0] if q.targets else 0 for q in queries], device=rows.device)
    some = torch.tensor([bool(q.targets) for q in queries], device=rows.device)
    if not len(truth.boxes):
        first, boxes = torch.zeros_like(first), truth.boxes.new_ones(1, 7)
    else:
        boxes = truth.boxes
    shown, visible = image_boxes(
        boxes[first], view.intrinsics[rows], view.ego_from_camera[rows], view.image_size
    )  # [V, N, 4], [V, N]
    return image_grounding_terms(
        grounding.boxes,
        grounding.centres,
        grounding.centerness_logits,
        grounding.places,
        grounding.sizes,
        shown.transpose(0, 1).flatten(0, 1),
        (visible & some).T.flatten(),
    )


def true_depth(view: SceneView, truth: SceneLabels, config: GroundingOccConfig, grid: VoxelGrid) -> Tensor:
    """The depth [V, h, w] of the reference frame's cells, rendered from the true occupancy."""
    assert view.depth_logits is not None
    rows, cells = view.moments[0].rows, (view.depth_logits.shape[2], view.depth_logits.shape[3])
    return cell_depth(
        truth.semantics != FREE,
        grid,
        view.intrinsics[rows],
        view.ego_from_camera[rows],
        view.image_size,
        cells,
        rays=config.depth_rays,
    )


def depth_term(view: SceneView, depth: Tensor) -> Term:
    """L_dmap: focal loss of the depth bins against the true `depth` [V, h, w]."""
    assert view.depth_logits is not None
    target, valid = DepthBins(number=view.depth_logits.shape[1]).index_of(depth)
    return depth_focal(view.depth_logits, target, valid)
