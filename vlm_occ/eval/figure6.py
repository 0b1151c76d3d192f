"""Figure 6: truth, M-baseline, GroundingOcc-Refine and VLM-Occ beside each other, failures included."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch

from vlm_occ.eval.contenders import answer, refined
from vlm_occ.eval.contest import Contest
from vlm_occ.eval.evaluate import true_voxels
from vlm_occ.eval.metrics import QueryRecord, occupancy_iou
from vlm_occ.geometry import project
from vlm_occ.render import draw_birds_eye, draw_camera, whole_file
from vlm_occ.types import FREE, GroundedObject, GroundingResult, LabelledScene, Scene

DRAWN = ("M-baseline", "GroundingOcc", "VLM-Occ")
"""Systems whose answers are drawn, GroundingOcc's refined."""


def choose(
    ours: Sequence[QueryRecord], theirs: Sequence[QueryRecord], count: int
) -> list[tuple[str, int, str]]:
    """Scene, sentence and kind of `count` pictures: by turns only we are right, only they, both, neither."""
    kinds: dict[str, list[tuple[str, int, str]]] = {
        kind: [] for kind in ("VLM-Occ alone", "GroundingOcc-Refine alone", "both", "neither")
    }
    for a, b in zip(ours, theirs, strict=True):
        right = (a.iou > 0.25, b.iou > 0.25)
        kind = {(True, False): 0, (False, True): 1, (True, True): 2, (False, False): 3}[right]
        name = tuple(kinds)[kind]
        if all(scene != a.scene for scene, *_ in kinds[name]):
            kinds[name].append((a.scene, a.query, name))
    turns = itertools.zip_longest(*kinds.values())
    return [entry for turn in turns for entry in turn if entry is not None][:count]


def draw_figure6(contest: Contest, folder: Path) -> list[Path]:
    """One picture a sentence; only the first seed's models are asked.

    Where tables are assembled and one of the models is missing: the pictures that are there.
    """
    if contest.config.assemble and not all(
        (contest.folder(name) / "final").exists() and 0 in contest.seeds_of(name) for name in DRAWN
    ):
        return sorted(folder.glob("*.png"))
    ours, theirs = contest.scored("VLM-Occ").plain, contest.scored("GroundingOcc").refined
    chosen = choose(ours, theirs, contest.config.pictures)
    if not chosen:
        return []
    models = {name: contest.trained(name) for name in DRAWN}
    paths = []
    for index in range(len(contest.validation)):
        item = contest.validation[index]
        for number, (scene, query, kind) in enumerate(chosen, start=1):
            if scene == item.scene.name:
                text = [item.queries[query].text]
                found = {name: answer(model, item, text)[0] for name, model in models.items()}
                found["GroundingOcc-Refine"] = refined(found.pop("GroundingOcc"))
                paths.append(folder / f"{number:02d}_{kind.replace(' ', '_')}.png")
                draw_columns(item, query, found, paths[-1])
    return sorted(paths)


def draw_columns(item: LabelledScene, query: int, found: dict[str, GroundingResult], path: Path) -> None:
    """A column for the truth and for each system: the camera that sees the object best, and from above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sentence = item.queries[query]
    target = sentence.targets[0]
    voxels = true_voxels(item, [target])
    occupied = item.labels.semantics != FREE
    true = GroundedObject(voxels, item.labels.boxes[target], 1.0)
    truth = GroundingResult(sentence.text, "truth", (true,), occupied, item.scene.grid)
    columns = {"truth": truth, **found}
    camera = best_camera(item.scene, true.box[:3])
    figure = Figure(figsize=(6 * len(columns), 8.5), dpi=70, facecolor="white")
    FigureCanvasAgg(figure)
    for place, (name, result) in enumerate(columns.items()):
        iou = occupancy_iou((result.occupancy == 2).cpu(), voxels)
        if camera is not None:
            axes = figure.add_subplot(2, len(columns), place + 1)
            axes.imshow(draw_camera(item.scene, result, camera))
            axes.set_axis_off()
            axes.set_title(f"{name}, IoU {iou:.2f}", fontsize=14)
        above = figure.add_subplot(2, len(columns), len(columns) + place + 1)
        draw_birds_eye(result, above)
        above.set_title("")  # the sentence, which stands over all columns
    figure.suptitle(f"“{sentence.text}”", fontsize=18, weight="bold", parse_math=False)
    figure.subplots_adjust(left=0.03, right=0.99, bottom=0.07, top=0.9, wspace=0.08, hspace=0.02)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def best_camera(scene: Scene, centre: torch.Tensor) -> str | None:
    """The camera in whose picture an ego point [3] is nearest to the middle; None where none shows it."""
    if not scene.rig.names:
        return None
    pixels, depth = project(centre[None], scene.rig.intrinsics, scene.rig.ego_from_camera)  # [V, 1, 2]
    size = torch.tensor([scene.rig.image_size[1], scene.rig.image_size[0]])
    place = pixels[:, 0] / size
    shown = (depth[:, 0] > 0) & ((place > 0) & (place < 1)).all(-1)
    off = torch.where(shown, (place - 0.5).norm(dim=-1), torch.inf)
    return scene.rig.names[int(off.argmin())] if bool(shown.any()) else None
