"""What a run trains on: the labelled subset of a split, and the inputs of the adapt step."""

from __future__ import annotations

from dataclasses import dataclass

from advl_pipeline.datasets.interface import Dataset
from advl_pipeline.datasets.joined import JoinedDataset
from advl_pipeline.datasets.lowshot import nested_subset
from advl_pipeline.datasets.registry import open_dataset
from advl_pipeline.training.adapt_inputs import open_other_inputs
from advl_pipeline.training.config import FinetuneConfig
from advl_pipeline.training.methods import takes_two_steps


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the phases train on: positions in the split of the labelled subset, and in `adapt_dataset`, which begins
    with the split, of the adapt step's inputs.

    `num_skipped` counts what the dataset left out as malformed.
    """

    dataset: Dataset
    labelled: list[int]
    adapt_dataset: Dataset
    adapt: list[int]
    num_skipped: int

    @property
    def splits(self) -> tuple[Dataset, ...]:
        """The split to train on, and then the other ones that the adapt step sees."""
        return self.adapt_dataset.parts if isinstance(self.adapt_dataset, JoinedDataset) else (self.dataset,)

    @property
    def other_ids(self) -> frozenset[str]:
        """Examples of the adapt step that are of other splits than the one to train on."""
        return self.adapt_dataset.other_ids if isinstance(self.adapt_dataset, JoinedDataset) else frozenset()


def open_inputs(config: FinetuneConfig) -> Inputs:
    """Open what a run trains on: its split, the labelled subset of it, and what the adapt step sees.

    Raises:
        DatasetError, ConfigError: as `open_dataset`, `nested_subset` and `open_other_inputs` say.
    """
    dataset = open_dataset(
        config.dataset,
        split=config.split,
        data_root=config.data_root,
        tasks=config.task,
        text_style=config.text_style,
        label_order=config.label_order,
        answers=config.answers,
        answer_list=config.answer_list,
        on_error=config.on_error,
    )
    everything = list(range(len(dataset)))
    labelled = everything
    if config.shots is not None:
        chosen = set(nested_subset(dataset, config.shots, config.seed))
        labelled = [index for index, name in enumerate(dataset.example_ids) if name in chosen]
    others = open_other_inputs(config, dataset) if takes_two_steps(config) else []
    joined = JoinedDataset([dataset, *others]) if others else dataset
    own = everything if "inputs" in config.adapt_on else labelled if "subset" in config.adapt_on else []
    return Inputs(
        dataset=dataset,
        labelled=labelled,
        adapt_dataset=joined,
        adapt=[*own, *range(len(dataset), len(joined))],
        num_skipped=len(dataset.skipped),
    )
