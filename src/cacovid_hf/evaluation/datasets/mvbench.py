"""MVBench (arXiv 2311.17005): 20 tasks of 200 questions, in the layout of its authors, asked as lmms-eval 0.7.3 does."""

import os
from typing import ClassVar

from .base import Clip, FileBenchmark, Sample, choices_of
from .tables import Row

# Where each task's videos lie: the cut clips of the revision "video", then the whole videos, of which `start` and `end` are shown.
FOLDERS = {
    "action_sequence": ("star/Charades_segment", "star/Charades_v1_480"),
    "action_prediction": ("star/Charades_segment", "star/Charades_v1_480"),
    "action_antonym": ("ssv2_video_mp4", "ssv2_video"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "unexpected_action": ("FunQA_test/test",),
    "object_existence": ("clevrer/video_validation",),
    "object_interaction": ("star/Charades_segment", "star/Charades_v1_480"),
    "object_shuffle": ("perception/videos",),
    "moving_direction": ("clevrer/video_validation",),
    "action_localization": ("sta/sta_video_segment", "sta/sta_video"),
    "scene_transition": ("scene_qa/video",),
    "action_count": ("perception/videos",),
    "moving_count": ("clevrer/video_validation",),
    "moving_attribute": ("clevrer/video_validation",),
    "state_change": ("perception/videos",),
    "fine_grained_pose": ("nturgbd_convert", "nturgbd"),
    "character_order": ("perception/videos",),
    "egocentric_navigation": ("vlnqa",),
    "episodic_reasoning": ("tvqa/video_fps3_hq_segment", "tvqa/frames_fps3_hq"),
    "counterfactual_inference": ("clevrer/video_validation",),
}
PICTURES_PER_SECOND = 3.0  # of the folders of pictures of episodic_reasoning


class MVBench(FileBenchmark):
    """The metric is the mean over the tasks.

    Layout: `json/<task>.json` (`video`, `question`, `candidates`, `answer`, and `start` and `end` in seconds for some) and the videos in `video/` or below the root,
    in a folder a task (`FOLDERS`), also as its archives are unpacked in place (`video/data0613/...`, `video/star/star/...`). Of a folder of clips cut beforehand, whole clips are shown; of the others, from `start` to `end`.
    """

    name = "mvbench"
    metric = "mean accuracy over tasks"
    macro_group = "task"
    breakdown = ("task",)
    protocol = "prompt of lmms-eval 0.7.3 (group mvbench), mean over the tasks as published"

    patterns: ClassVar[tuple[str, ...]] = ("json/*.json", "**/json/*.json")
    answer_is = "text"

    def sample(self, row: Row) -> Sample:
        """Return a question of the task that the file is named after."""
        task = row.path.stem.lower()
        if task not in FOLDERS:
            raise ValueError(
                f"{row.path} is not a task of MVBench ({', '.join(FOLDERS)}): move other files out of the folder."
            )
        options, lines = choices_of(row.field("candidates"), "({letter}) {text}", keep_letters=False)
        prompt = "\n".join([f"Question:{row.text('question')}", "Option:", *lines, "Only give the best option.\n"])
        video = row.text("video")
        return Sample(
            f"{task}-{row.number - 1}", self._clip(task, row, video), prompt, None, options, {"task": task}, video
        )

    def _clip(self, task: str, row: Row, video: str) -> Clip:
        start, end = row.seconds("start"), row.seconds("end")
        folders = [f"{root}{folder}" for folder in FOLDERS[task] for root in ("video/", "")]
        if end is None:  # whole clips: wherever in the folder of the video's source
            folders += [folder.partition("/")[0] for folder in FOLDERS[task]]
        path = self.copy.video(video, folders, anywhere=False)
        is_cut = end is None or any(part.endswith("segment") for part in path.relative_to(self.root).parts[:-1])
        fps = PICTURES_PER_SECOND if os.path.isdir(path) else None
        return Clip(path, fps=fps) if is_cut else Clip(path, start or 0.0, end, fps)
