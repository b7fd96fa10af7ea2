"""Names from standard input, the most probable labels to standard output.

    python name_classifier/classify.py checkpoints/checkpoint_best.pt < names.txt
"""
import sys
from pathlib import Path

from seqlit.base.plugins import load_plugin
from seqlit.hub.translator import load_models


def main(path, lines, best=3):
    "Print the best labels of each line."
    load_plugin(Path(__file__).resolve().parent)
    (model,), task = load_models(path)
    names, labels = [line.strip() for line in lines], task.target_dictionary
    for name, row in zip(names, task.classify(model, names)):
        found = [(f'{p:.2f}', labels[int(i)]) for p, i in zip(*row.topk(best))]
        print(name, *(f'{label} {p}' for p, label in found), sep='\t')


if __name__ == '__main__':
    main(sys.argv[1], sys.stdin)
