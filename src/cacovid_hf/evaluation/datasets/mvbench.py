"""MVBench (arXiv 2311.17005): 20 tasks of 200 questions, in the layout of its authors, asked as lmms-eval 0.7.3 does."""

from pathlib import Path

from .base import Clip, FileBenchmark, Sample, lettered

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
    in a folder a task (`FOLDERS`). Of a folder of clips cut beforehand, whole clips are shown; of the others, from `start` to `end`.
    """

    name = "mvbench"
    metric = "mean accuracy over tasks"
    macro_group = "task"
    breakdown = ("task",)
    protocol = "prompt of lmms-eval 0.7.3 (group mvbench), mean over the tasks as published"

    def read(self) -> list[Sample]:
        """One sample a row."""
        samples = []
        for path in self.files("json/*.json", "**/json/*.json"):
            if path.stem not in FOLDERS:
                raise ValueError(
                    f"{self.name}: {path} is no task of MVBench ({', '.join(FOLDERS)}): move other files out of the folder."
                )
            for number, row in enumerate(self.rows(path)):
                options = tuple(str(candidate) for candidate in self.field(row, "candidates", path))
                answer = str(self.field(row, "answer", path))
                if answer not in options:
                    raise ValueError(f"{self.name}: row {number} of {path}: the answer {answer!r} is no candidate.")
                lines = lettered(options, lambda letter, option: f"({letter}) {option}")
                prompt = "\n".join(
                    [f"Question:{self.field(row, 'question', path)}", "Option:", *lines, "Only give the best option.\n"]
                )
                samples.append(
                    Sample(
                        f"{path.stem}-{number}",
                        self._clip(path.stem, row, str(self.field(row, "video", path))),
                        prompt,
                        "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[options.index(answer)],
                        options,
                        {"task": path.stem},
                        str(row["video"]),
                    )
                )
        return samples

    def _clip(self, task: str, row: dict, video: str) -> Clip:
        roots = ("video", ".", "data0613")
        places = [Path(root, folder) for folder in FOLDERS[task] for root in roots]
        path = next(
            (found for place in places if (found := self.video(video, str(place))).exists()),
            self.root / places[0] / video,
        )
        segment = path.parent.name.endswith("segment") or row.get("end") is None
        start, end = (None, None) if segment else (float(row.get("start") or 0.0), float(row["end"]))
        return Clip(path, start, end, PICTURES_PER_SECOND if path.is_dir() else None)
