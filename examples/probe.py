"""Score a probe on the pooled vectors of two frozen towers: what a student of few labels has to beat.

python examples/probe.py DATA --shots 100 --seed 0 --on test    # DATA as for `advl finetune`, and the same labels

Two linear maps read choices, classes or open answers off vectors of text and picture, without any layer of fusion.
"""

import argparse

import numpy as np

import advl_pipeline as advl


def read(data, split, **subset):
    """Return the examples of a split, the vectors of their texts and pictures, and the names of classes."""
    dataset = advl.open_data(data, split, **subset)
    examples = [dataset[place] for place in range(len(dataset))]
    text, image = (
        advl.extract(teacher=teacher, data=data, split=split, confidence="none", **subset).cache
        for teacher in ("minilm-l6", "efficientnet-lite0")
    )
    texts = [[candidate.text_unit.unit_id for candidate in example.candidates] for example in examples]
    said = np.stack([text.text.global_features(ids) for ids in texts])
    shown = image.image.global_features([example.image.unit_id for example in examples])
    return examples, (said, shown), dataset.label_names(dataset.tasks[0])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--shots", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--on", default="test")
    given = parser.parse_args()
    learnt, vectors, classes = read(given.data, "train", shots=given.shots, seed=given.seed)
    probe = advl.MatchProbe.fit(*vectors, [example.label for example in learnt], num_classes=len(classes))
    asked, vectors, _ = read(given.data, given.on)
    best = probe.scores(*vectors).argmax(axis=1).tolist()
    right = [
        dict(example.soft_label).get(chosen, 0.0) if example.soft_label else chosen == example.label
        for example, chosen in zip(asked, best, strict=True)
    ]
    print(f"{100 * np.mean(right):.1f} % of {len(right)} questions of {given.on}")


if __name__ == "__main__":
    main()
