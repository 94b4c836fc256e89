"""What tests share: opening rendered sets, a predictor that is right, a whole run, and what stands in for a network."""

import numpy as np

from src.evaluation.datasets import open_dataset
from src.evaluation.evaluator import Record, evaluate, summarise
from src.inference.backends import Backend

IMAGES = 3  # of each set of the fixture ``eval_data``
FOLDERS = {"Kitti": "Kitti_raw_data"}  # the others are named as their sets
CPU = Backend("mindspore", "CPU", 0, "fp32")


class RedChannel:
    """In place of a network: predicts the red channel."""

    compilations = 0

    def prepare(self, image, resize_method=""):
        return image[..., 0].astype(np.float32)

    def infer(self, prepared):
        return prepared


def open_one(root, name, protocol="paper"):
    return open_dataset(name, root / FOLDERS.get(name, name), protocol)


def true_inverse_depth(root, name):
    """Sample name -> the inverse depth that is right everywhere; of DIW, 0 but for the nearer point of the pair."""
    if name == "DIW":
        lines = (root / "DIW" / "DIW_Annotations" / "DIW_test.csv").read_text().splitlines()
        truth = {}
        for picture, annotation in zip(lines[::2], lines[1::2]):
            y1, x1, y2, x2, relation, width, height = annotation.split(",")
            truth[picture] = np.zeros((int(height), int(width)), np.float32)
            nearer = (y2, x2) if relation == ">" else (y1, x1)
            truth[picture][int(nearer[0]) - 1, int(nearer[1]) - 1] = 1
        return truth
    dataset = open_one(root, name)
    samples = [dataset[index] for index in range(len(dataset))]
    return {sample.name: 1 / np.where(sample.valid, sample.depth, 1) for sample in samples}


def run(dataset, predict, prepare=lambda sample: sample):
    outcomes = list(evaluate(dataset, range(1, len(dataset) + 1), prepare, predict))
    records = [outcome for outcome in outcomes if isinstance(outcome, Record)]
    return summarise(dataset, records, len(outcomes) - len(records)), outcomes
