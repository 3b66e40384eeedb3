"""A policy of your own: a function that says which visual tokens every layer keeps.

python examples/own_policy.py
"""

import numpy as np

from pyaircache import Chat, sample


def one_ranking(scores: np.ndarray, total: int) -> list[np.ndarray]:
    """The `total` best cells of all layers in one ranking; each layer's best one in any case.

    scores: AirCache's importance of every visual token in every layer, [layers, visual tokens].
    Returns the kept tokens' indices of each layer, ascending.
    """
    ranks = scores.copy()
    ranks[np.arange(len(scores)), scores.argmax(axis=1)] = np.inf
    layers, tokens = np.unravel_index(np.argsort(-ranks, axis=None)[:total], scores.shape)
    return [np.sort(tokens[layers == layer]) for layer in range(len(scores))]


page = sample()
with Chat(keep=0.10) as chat:
    print("aircache:   ", (answer := chat.ask(page.path, page.question)), answer.report.budgets)
with Chat(keep=0.10, method=one_ranking) as chat:
    print("one ranking:", (answer := chat.ask(page.path, page.question)), answer.report.budgets)
