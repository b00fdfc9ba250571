"""Near-equal texts: MinHash signatures, banded hashing, and a check of the true overlap.

Two texts are near-equal if the sets of their character 5-grams have a Jaccard index
|A & B| / |A | B| of at least 0.6. Comparing all pairs would cost N^2; here texts are compared that
agree in one of 32 bands of 4 MinHash values, which pairs at 0.6 do with probability 0.988 and pairs
at 0.7 with 0.9998 (1 - (1 - J^4)^32). Time and memory are linear in N.

References:
  Broder, On the resemblance and containment of documents, 1997.
  Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3rd edition, section 3.4.
"""

from collections.abc import Iterator, Sequence

import numpy as np

NEAR = 0.6
_GRAM = 5
_BANDS, _BAND_WIDTH = 32, 4
_HASHES = _BANDS * _BAND_WIDTH
# Neighbours that each text is compared with in every band: runs of equal bands can be long.
_NEIGHBOURS = 4
# Comparisons below `NEAR` after which a text is compared no more: texts that share long boilerplate
# would be compared with very many others. On MMLU this limit and the next lose 1 link in 100.
_FAILURES = 64
# Pairs whose signatures agree less are not checked; at `NEAR` that is 1 pair in 100.
_WORTH_CHECKING = 0.5
# Grams processed at once: as many as fit the processor's cache, and as memory should hold.
_CACHED, _CHUNK = 1 << 15, 1 << 20


def near_equal(texts: Sequence[str], group_N: np.ndarray) -> np.ndarray:
    """Which texts have a near-equal one in another group.

    Args:
      texts: [N] normalised texts, no two equal.
      group_N: [N] int; pairs within one group do not count.

    Returns:
      [N] bool. A few links between texts that overlap by little more than `NEAR` are missed, with
      the probabilities above; none is false.
    """
    linked_N, failures_N = np.zeros(len(texts), bool), np.zeros(len(texts), np.int64)
    if len(texts) < 2:
        return linked_N
    signature_NK = _signatures(texts)
    refused = np.zeros(0, np.int64)  # Pairs below NEAR, as row * N + row: other bands repeat them.
    for band in range(_BANDS):
        for pairs in _neighbours(signature_NK, band * _BAND_WIDTH):
            pairs = pairs[group_N[pairs[:, 0]] != group_N[pairs[:, 1]]]
            open_N = ~linked_N & (failures_N < _FAILURES)
            pairs = pairs[open_N[pairs].any(axis=1)]
            pairs = pairs[_agreement(signature_NK, pairs) >= _WORTH_CHECKING]
            keys = pairs.min(axis=1) * len(texts) + pairs.max(axis=1)
            pairs, keys = (array[~np.isin(keys, refused)] for array in (pairs, keys))
            near_n = _overlap(texts, pairs) >= NEAR
            linked_N[pairs[near_n].ravel()] = True
            refused = np.concatenate((refused, keys[~near_n]))
            np.add.at(failures_N, pairs[~near_n].ravel(), 1)
    return linked_N


def _signatures(texts: Sequence[str]) -> np.ndarray:
    """[N, K] uint32 MinHash values."""
    rng = np.random.default_rng(0)
    # Odd factors modulo 2^32 permute the hashes, which are well mixed already.
    factor_K = rng.integers(0, 1 << 31, _HASHES, np.uint32) * np.uint32(2) + np.uint32(1)
    shift_K = rng.integers(0, 1 << 32, _HASHES, np.uint32)
    signature_NK = np.empty((len(texts), _HASHES), np.uint32)
    for first, last in _chunks([len(text) for text in texts], _CACHED):
        grams, starts = _grams(texts[first:last])
        hashed = np.empty_like(grams)
        for k in range(_HASHES):
            np.multiply(grams, factor_K[k], out=hashed)
            np.bitwise_xor(hashed, shift_K[k], out=hashed)
            signature_NK[first:last, k] = np.minimum.reduceat(hashed, starts)
    return signature_NK


def _grams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """uint32 hashes of all character grams, text after text, and the place of each text's first.

    Zeros behind each text keep grams from reaching into the next, and give short texts grams too.
    """
    pad = "\0" * (_GRAM - 1)
    codes = np.frombuffer((pad.join(texts) + pad).encode("utf-32-le"), np.uint32).astype(np.uint64)
    mixed = np.zeros(len(codes) - _GRAM + 1, np.uint64)
    for offset in range(_GRAM):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + len(mixed)]
    mixed ^= mixed >> np.uint64(29)
    hashes = ((mixed * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(32)).astype(np.uint32)
    lengths = np.array([len(text) for text in texts], np.int64)
    begin = np.cumsum(lengths + _GRAM - 1) - (lengths + _GRAM - 1)
    # The windows that begin in the padding belong to no text.
    inside = np.repeat(begin - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    return hashes[inside], np.cumsum(lengths) - lengths


def _neighbours(signature_NK: np.ndarray, start: int) -> Iterator[np.ndarray]:
    """[n, 2] pairs of rows with equal values in the band that starts there; the nearest first."""
    band = signature_NK[:, start : start + _BAND_WIDTH]
    # Ties are ordered by the next band, so that the most similar rows of a long run are neighbours.
    after = signature_NK[:, (start + _BAND_WIDTH) % _HASHES]
    order = np.lexsort((after, *band.T))
    ordered = band[order]
    for step in range(1, min(_NEIGHBOURS + 1, len(order))):
        same = (ordered[step:] == ordered[:-step]).all(axis=1)
        yield np.stack((order[:-step][same], order[step:][same]), axis=1)


def _agreement(signature_NK: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """[n] share of equal signature values: an estimate of the Jaccard index."""
    share = np.empty(len(pairs))
    for first in range(0, len(pairs), 1 << 14):
        one, two = pairs[first : first + (1 << 14)].T
        share[first : first + len(one)] = (signature_NK[one] == signature_NK[two]).mean(axis=1)
    return share


def _overlap(texts: Sequence[str], pairs: np.ndarray) -> np.ndarray:
    """[n] Jaccard index of each pair's sets of grams."""
    lengths = [len(texts[one]) + len(texts[two]) for one, two in pairs.tolist()]
    index = np.empty(len(pairs))
    for first, last in _chunks(lengths, _CHUNK):
        of_pair = [[texts[i] for i in pairs[first:last, side].tolist()] for side in (0, 1)]
        one, two = (_gram_sets(side) for side in of_pair)
        both = np.sort(np.concatenate((one, two)), kind="stable")  # Merges the two sorted runs.
        shared = _count(both[1:][both[1:] == both[:-1]], last - first)
        union = _count(one, last - first) + _count(two, last - first) - shared
        index[first:last] = shared / union
    return index


def _gram_sets(texts: Sequence[str]) -> np.ndarray:
    """The distinct grams of each text as (position of the text) * 2^32 + hash, sorted."""
    grams, starts = _grams(texts)
    lengths = np.diff(np.append(starts, len(grams)))
    of_text = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths)
    keys = np.sort((of_text << np.uint64(32)) | grams)
    return keys[np.append(True, keys[1:] != keys[:-1])]


def _count(keys: np.ndarray, n: int) -> np.ndarray:
    return np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=n)


def _chunks(lengths: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Ranges of consecutive items, together about `size` long."""
    total = np.cumsum(lengths)
    first = 0
    while first < len(total):
        reached = total[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(total, reached + size, side="right")))
        yield first, last
        first = last
