"""What a sentence states, factor by factor, with the objects that have it: truth for the factor head."""

from __future__ import annotations

from dataclasses import replace

from vlm_occ.data.simulator.meaning import Masks, Meaning, SceneView
from vlm_occ.types import QueryPart


def query_parts(view: SceneView, meaning: Meaning) -> tuple[QueryPart, ...]:
    """The factors that a meaning states, evaluated against its scene."""
    masks = _unary(view, meaning)
    relation, order = meaning.relation, meaning.order
    anchor = None
    if order is not None:
        masks["filter"] = view.evaluate(replace(meaning, order=None))
        masks["order"] = view.evaluate(meaning)
        anchor = order.anchor
    if relation is not None and anchor is None:  # the head knows one related object, rarely there are two
        masks["relation"] = view.related(relation)
        anchor = relation.anchor
    if anchor is not None:
        masks["anchor"] = view.evaluate(anchor)
        masks.update({f"anchor {kind}": pair for kind, pair in _unary(view, anchor).items()})
    return tuple(QueryPart(kind, sure, possible) for kind, (sure, possible) in masks.items())


def _unary(view: SceneView, meaning: Meaning) -> dict[str, Masks]:
    """The noun and attributes of a description."""
    return {"noun": view.noun(meaning.noun), **{a.kind: view.attribute(a) for a in meaning.attributes}}
