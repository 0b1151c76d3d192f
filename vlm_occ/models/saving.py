"""How VLMOcc is written; reading is `VLMOcc.from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from vlm_occ.models.adapter import VLMOcc


class Saving:
    """`save_pretrained` and `push_to_hub` of VLMOcc."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config and our weights (never the base model's) into `folder`, at once or not at all."""
        from vlm_occ.models.checkpoint import save_checkpoint

        save_checkpoint(cast("VLMOcc", self), Path(folder))

    def push_to_hub(self, repo_id: str, *, private: bool = False, results: str | Path | None = None) -> str:
        """Upload a checkpoint, its card with the figures of a results file; the commit's address."""
        from vlm_occ.models.checkpoint import push_checkpoint

        path = None if results is None else Path(results)
        return push_checkpoint(cast("VLMOcc", self), repo_id, private=private, results=path)
