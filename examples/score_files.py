"""Score prediction files of any program by the official rules, without a model.

python examples/score_files.py vqa ANNOTATIONS.json RESULTS.json [2021 | 2017 | vqa-vs]
python examples/score_files.py vcr val.jsonl ANSWERS.npy RATIONALES.npy
python examples/score_files.py snli-ve snli_ve_test.jsonl PREDICTIONS.csv
python examples/score_files.py daquar qa.894.raw.test.txt PREDICTIONS.csv    # needs nltk and its WordNet

VQA takes the results that `advl predict` writes and EvalAI takes. VCR takes scores of four answers, and of four
rationales given the right answer, in the order of the annotations. SNLI-VE takes pairID and label. DAQUAR takes the
file of questions that the predictions name, and the CSV of `advl predict`.
"""

import csv
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np

from advl_pipeline import snli_ve_accuracy, vqa_accuracy

LABELS = ("contradiction", "neutral", "entailment")


def read_rows(path):
    """Return the rows of a JSON list, JSON lines, CSV, or VQA's object with the key `annotations`."""
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    rows = json.loads(text)
    return rows["annotations"] if isinstance(rows, dict) else rows


def read_predictions(path, key, value, ids):
    """Return id -> prediction, of exactly the annotated items."""
    rows = read_rows(path)
    found = {row[key]: row[value] for row in rows}
    if len(found) < len(rows) or found.keys() != set(ids):
        sys.exit(f"{path}: the items are not the annotated ones, each once: {sorted(found.keys() ^ set(ids))[:3]}")
    return found


def score_vqa(annotations, results, mode="2021"):
    """Return the accuracy overall, per answer type, per question type and per question."""
    truths = read_rows(annotations)
    ids = [truth["question_id"] for truth in truths]
    return vqa_accuracy(truths, read_predictions(results, "question_id", "answer", ids), mode)


def score_vcr(annotations, answers, rationales):
    """Return the accuracy of answers, of rationales given the right answer, and of both."""
    labels = np.array([[row["answer_label"], row["rationale_label"]] for row in read_rows(annotations)])
    scores = np.stack([np.load(answers), np.load(rationales)], axis=1)
    if scores.shape != (len(labels), 2, 4) or np.isnan(scores).any():
        sys.exit(f"{answers}, {rationales}: the scores are not {len(labels)} x 4 numbers")
    right = scores.argmax(axis=2) == labels
    q2a, qa2r = 100 * right.mean(axis=0)
    return {"num_items": len(labels), "q2a": q2a, "qa2r": qa2r, "q2ar": 100 * right.all(axis=1).mean()}


def score_snli_ve(annotations, predictions):
    """Return the accuracy and the confusion matrix; its rows are true classes."""
    truths = {row["pairID"]: row["gold_label"] for row in read_rows(annotations)}
    labels = read_predictions(predictions, "pairID", "label", truths)
    predicted = np.array([LABELS.index(labels[name]) for name in truths])
    return snli_ve_accuracy(predicted, np.array([LABELS.index(label) for label in truths.values()]), LABELS)


def score_daquar(questions, predictions, similarity=None):
    """Return the accuracy and both WUPS of Malinowski and Fritz (2014), of all answers and of those of one word."""
    similarity = similarity or wu_palmer
    questions = Path(questions)
    lines = questions.read_text(encoding="utf-8").splitlines()
    truths = [line for line in lines if line.strip()][1::2]
    if questions.suffix == ".csv":
        truths = [row["answer"] for row in read_rows(questions)]
    pairs = []
    for row in read_rows(predictions):
        file, _, number = row["id"].rpartition(":")
        if not file.endswith(questions.stem) or not 1 <= int(number) <= len(truths):
            sys.exit(f"{predictions}: {row['id']} is not a question of {questions}")
        pairs.append((words(row["prediction"]), words(truths[int(number) - 1])))
    single = [pair for pair in pairs if len(pair[1]) == 1]
    return {
        f"{name}{of}": 100 * np.mean([set_score(*pair, measure) for pair in subset])
        for of, subset in (("", pairs), (" of single words", single))
        for name, measure in (
            ("accuracy", lambda a, b: float(a == b)),
            ("wups@0.9", lambda a, b: down_weighted(similarity(a, b), 0.9)),
            ("wups@0.0", similarity),
        )
    } | {"num_items": len(pairs), "num_single_words": len(single)}


def words(answer):
    """Return the words of an answer, which is a set."""
    return {word.strip() for word in answer.split(",")}


def set_score(answer, truth, measure):
    """Return the smaller product over the words of one set of the best measure among the words of the other."""
    return min(
        np.prod([max(measure(a, b) for b in other) for a in one]) for one, other in ((answer, truth), (truth, answer))
    )


def down_weighted(similarity, threshold):
    """Return a similarity, or a tenth of it below the threshold."""
    return similarity if similarity >= threshold else 0.1 * similarity


@cache
def wu_palmer(a, b):
    """Return the similarity of the nearest noun senses of two words by Wu and Palmer (1994); 1 for equal words."""
    from nltk.corpus import wordnet

    if a == b:
        return 1.0
    senses_a, senses_b = (wordnet.synsets(word, pos=wordnet.NOUN) for word in (a, b))
    return max((x.wup_similarity(y) or 0.0 for x in senses_a for y in senses_b), default=0.0)


if __name__ == "__main__":
    task, *files = sys.argv[1:]
    score = {"vqa": score_vqa, "vcr": score_vcr, "snli-ve": score_snli_ve, "daquar": score_daquar}[task]
    for name, value in score(*files).items():
        if name != "per_question":
            print(name, value)
