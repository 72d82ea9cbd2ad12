"""Frames of a report's case, or how to get them again."""

from __future__ import annotations

from typing import Any

from dittools.pipelines import reading
from dittools.pipelines.errors import BadInput
from dittools.report.folder import Folder
from dittools.report.plan import Plan


def read_frames(folder: Folder, plan: Plan, case_id: str) -> Any:
    """All frames of a case. Raises BadInput, with the folder to remove, where they are not all there."""
    path = folder.frames(case_id)
    try:
        frames = reading.read(path).frames
        why = f"{path} holds {len(frames)} of {plan.frames} frames"
        if len(frames) >= plan.frames:
            return frames
    except BadInput as error:
        why = str(error).rpartition(": ")[0]
    raise BadInput(f"{why}: remove {folder.case(case_id)}, and the report's own command makes it again")
