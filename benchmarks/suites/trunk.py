"""The trunk and trunks suites: training one ensemble, and many networks at once."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import routerjax as rj
from benchmarks.suites import rounds, session
from benchmarks.suites.rounds import Contestant, Work
from benchmarks.suites.torch_trunk import torch_ensemble

# Nats of validation loss. The same code differs by rounding, which training amplifies; torch draws
# other random numbers, so that only means compare.
_SAME_CODE, _TORCH = 5e-3, 3e-2


def trunk(s: session.Session) -> dict[str, Any]:
    """Ten members in one program, by pmap, one call after the other, and in torch."""
    published = rj.TrunkConfig()
    val, fit = s.data.split(published.val_fraction, published.split_seed)
    features = rj.fit_features(rj.Recipe.all_layers(), s.store, fit)
    x, x_val = (features.apply_store(s.store, part.ids) for part in (fit, val))
    arrays = [x, fit.correct_NM, x_val, val.correct_NM]
    one_device, n_epochs = jax.local_devices()[:1], 0

    def history(seeds: Sequence[int], devices: Any) -> Any:
        config = dataclasses.replace(published, seeds=tuple(seeds), keep=1)
        return rj.train_trunk(x, fit.correct_NM, x_val, val.correct_NM, config, devices=devices)[1]

    def train(seeds: Sequence[int], devices: Any) -> np.ndarray:
        return history(seeds, devices).best_val_loss_K

    def at_once(number: int) -> np.ndarray:
        nonlocal n_epochs
        result = history(published.seeds, one_device)
        n_epochs = int(np.isfinite(result.train_loss_EK).sum())
        return result.best_val_loss_K

    def alone(number: int) -> np.ndarray:
        return np.concatenate([train([seed], one_device) for seed in published.seeds])

    def work() -> Work:
        widths = (x.shape[1], *published.hidden, len(fit.targets))
        return Work(n_epochs * epoch_flops(widths, len(x), len(x_val)))

    ours = "routerjax: 10 members in one program"
    contestants, left_out = [Contestant(ours, at_once)], []
    several = session.several_devices()
    if several:
        left_out.append(several)
    else:
        name = f"pmap over {len(jax.local_devices())} devices"
        contestants.append(Contestant(name, lambda _: train(published.seeds, None)))
    contestants.append(Contestant("member by member, same code", alone))
    if session.installed("torch"):
        contestants.append(
            Contestant("torch, member by member", lambda _: torch_ensemble(arrays, published)[0],
                       compiles=False)
        )  # fmt: skip
    else:
        left_out.append(f"{session.TORCH} in trunk")

    def agree(results: dict[str, np.ndarray]) -> dict[str, float]:
        losses_K = results[ours]
        result = {}
        for name, theirs_K in results.items():
            if name.startswith("torch"):
                error, most = abs(float(losses_K.mean() - theirs_K.mean())), _TORCH
            else:
                error, most = float(np.abs(losses_K - theirs_K).max()), _SAME_CODE
            if name != ours:
                result[f"validation nats, {name}"] = rounds.require(name, error, most)
        return result

    result = rounds.in_rounds(contestants, s.rounds, work, agree)
    return result | {
        "title": f"{len(x)} rows, {x.shape[1]} features, {len(fit.targets)} targets, 10 members, "
        f"{n_epochs} epochs of members in all.",
        "left_out": left_out,
        "scaling": _scaling(s, train, published) if s.scale.scaling else [],
    }


def trunks(s: session.Session) -> dict[str, Any]:
    """Many networks at once; one by one with the same code and in torch, some of them, scaled."""
    n, last = s.scale.trunks, s.encoder.n_states - 1
    grid = rj.parse_trunk_grid(
        "lr=1e-3|3e-4;l2=1e-4|1e-3;dropout=0.3x0.2|0.5;hidden=256x128;"
        f"recipe=all_layers|layers:{last}|layers:{last - 1}@last|all_layers@last+mean;"
        f"seeds={-(-n // 32)}"
    )
    published = rj.TrunkConfig()
    val, fit = s.data.split(published.val_fraction, published.split_seed)
    x, x_val = {}, {}
    for name, recipe in grid.recipes.items():
        features = rj.fit_features(recipe, s.store, fit)
        x[name], x_val[name] = (features.apply_store(s.store, part.ids) for part in (fit, val))
    members = [
        rj.TrunkMember(m.recipe, m.hidden, m.dropout, m.learning_rate, m.l2, seed)
        for m in grid.settings()
        for seed in grid.seeds
    ][:n]
    order = np.random.default_rng(s.seed).permutation(n)
    some = np.resize(order, max(s.rounds, min(s.scale.alone, n)))
    shares = np.array_split(some, s.rounds)

    def chosen(number: int) -> np.ndarray:
        return shares[number - 1] if number else some[:1]

    def flops_of(member: rj.TrunkMember, epochs: float) -> float:
        widths = (x[member.features].shape[1], *member.hidden, len(fit.targets))
        return float(epochs) * epoch_flops(widths, len(fit), len(val))

    # Networks differ in what they take: a part of them is that part of the work, not of their
    # number. Torch draws other random numbers and stops after epochs of its own.
    done: dict[tuple[bool, int], float] = {}
    n_flops = 0.0

    def each(number: int, in_torch: bool) -> tuple[np.ndarray, np.ndarray]:
        losses, flops = [], 0.0
        for k in chosen(number):
            member = members[k]
            own = {key: value for key, value in member._asdict().items()
                   if key not in ("features", "seed")}  # fmt: skip
            alone = dataclasses.replace(published, seeds=(member.seed,), keep=1, **own)
            of_fit, of_val = x[member.features], x_val[member.features]
            if in_torch:
                arrays = [of_fit, fit.correct_NM, of_val, val.correct_NM]
                best_K, epochs_K = torch_ensemble(arrays, alone)
            else:
                _, history = rj.train_trunk(of_fit, fit.correct_NM, of_val, val.correct_NM, alone)
                best_K = history.best_val_loss_K
                epochs_K = np.isfinite(history.train_loss_EK).sum(axis=0)
            losses.append(best_K[0])
            flops += flops_of(member, epochs_K[0])
        done[in_torch, number] = flops
        return chosen(number), np.array(losses)

    def at_once(number: int) -> np.ndarray:
        nonlocal n_flops
        result = rj.train_trunks(x, fit.correct_NM, x_val, val.correct_NM, members, published)
        # A member stops when it has waited for so long since its best epoch.
        epochs_K = np.minimum(result.best_epoch_K + 1 + published.patience, published.epochs)
        n_flops = sum(flops_of(*of_one) for of_one in zip(members, epochs_K, strict=True))
        return result.best_val_loss_K

    ours = f"routerjax: {n} at once"
    contestants = [
        Contestant(ours, at_once),
        Contestant(
            "one by one, same code",
            lambda number: each(number, False),
            lambda number: done[False, number] / n_flops,
        ),
    ]
    left_out = []
    if session.installed("torch"):
        contestants.append(
            Contestant("torch, one by one", lambda number: each(number, True),
                       lambda number: done[True, number] / n_flops, compiles=False)
        )  # fmt: skip
    else:
        left_out.append(f"{session.TORCH} in trunks")

    def agree(results: dict[str, Any]) -> dict[str, float]:
        losses_K, result = results.pop(ours), {}
        for name, (at, losses) in results.items():
            if name.startswith("torch"):
                error, most = abs(float(losses_K[at].mean() - losses.mean())), _TORCH
            else:
                error, most = float(np.abs(losses_K[at] - losses).max()), _SAME_CODE
            result[f"validation nats, {name}"] = rounds.require(name, error, most)
        return result

    result = rounds.in_rounds(contestants, s.rounds, lambda: Work(n_flops), agree)
    return result | {
        "title": f"{n} networks of {len(grid.recipes)} recipes, 8 settings, several seeds; "
        f"{len(fit)} rows. Which of them were trained one by one differs from round to round; "
        "their time is scaled by the floating-point operations of the epochs they took.",
        "left_out": left_out,
    }


def epoch_flops(widths: Sequence[int], rows: int, val_rows: int) -> float:
    """Floating-point operations of one member's epoch: the products of its layers, and validation.

    Each layer's forward product and its weights' gradient; the input's gradient too, but for the
    first layer.

    Args:
      widths: Of the features, the hidden layers and the targets.
      rows: Trained on.
      val_rows: Scored once.
    """
    products = [float(a * b) for a, b in itertools.pairwise(widths)]
    return rows * (4.0 * sum(products) + 2.0 * sum(products[1:])) + 2.0 * val_rows * sum(products)


def _scaling(s: session.Session, train: Any, published: rj.TrunkConfig) -> list[dict[str, Any]]:
    """Time against members; the epochs they take are theirs."""
    one, n_rounds = jax.local_devices()[:1], min(s.rounds, 3)
    return [
        rounds.scaling("an ensemble", "members", [1, 3, 10],
                      lambda k: lambda: train(published.seeds[:k], one), n_rounds)
    ]  # fmt: skip
