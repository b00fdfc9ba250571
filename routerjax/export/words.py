"""The formula of a router in words, for a reader in any language."""

from routerjax.routing.router import Router

_NOTATION = (
    "features.*, trunk.*, kernel.*, trust.* and lengths.* are arrays of model.safetensors, float32 "
    "in C order; other names are fields of this file. Indices count from 0, m is a target in the "
    "order of `targets`, a @ b is a matrix product, and a null is an unknown number."
)
_STATES = (
    "h[e][l, p], a vector, is hidden state l of encoder e under pooling p, in float32. Hidden "
    "states are numbered as in Hugging Face's output_hidden_states: 0 is the embedding output, i "
    "the output of block i, the last one is taken after the final norm. encoders[e] says what the "
    "encoder must compute: its prompt is the query as one user turn in the chat template with "
    "chat_template_kwargs, on prompt_date where the template prints a date, and the generation "
    "prompt (without a chat template the text itself), with no second BOS. Of a prompt longer than "
    "max_tokens the query keeps the first half (rounded up) and the last half of its tokens that "
    "fit."
)
_POOLINGS = {
    "last": "the prompt's last token",
    "mean": "the mean over all tokens of the prompt",
    "query_mean": "the mean over the query's own tokens, without those of the template",
    "first": "the prompt's first token",
    "max": "the maximum over all tokens of the prompt",
} | {
    f"at{share}": f"token floor({share / 100:g} (n - 1)) of the query's own n, counted from 0"
    for share in (25, 50, 75)
}
_FEATURES = (
    "For each part i of `parts`: x_i = sum over its sites s of ((h[encoder][sites[s]] - "
    "features.i.mean[s]) / features.i.scale[s]) @ features.i.components[s]. The features x are "
    "x_0, x_1, ... one behind the other."
)
_TRUNK = (
    "For each member k: a = x; for j = 0 to n_hidden - 1: a = max(0, a @ trunk.j.kernel[k] + "
    "trunk.j.bias[k]); z_k = a @ trunk.H.kernel[k] + trunk.H.bias[k] with H = n_hidden; p_k = 1 / "
    "(1 + exp(-z_k)). p, a number for each target, is the mean of p_k over the members."
)
_KERNEL = (
    "g[n] = exp(-|x - kernel.x[n]|^2 / (2 kernel_width)); q = kernel.mean + g @ kernel.alpha, each "
    "number of it kept between 0.005 and 0.995; p becomes (1 - kernel.share) p + kernel.share q."
)
_CALIBRATION = (
    "p[m] becomes, by calibration[m].method: none: p[m]; temperature or platt: 1 / (1 + "
    "exp(-(slope log(r / (1 - r)) + shift))) with r = p[m] kept between 1e-7 and 1 - 1e-7; "
    "isotonic: straight lines through the points (knots[0][i], knots[1][i]), and beyond the first "
    "and the last point their values. This p[m] is P(target m answers correctly)."
)
_TRUST = (
    "u = x @ trust.within; v = (x - trust.middle) @ trust.all; d = (the smallest, over g, of the "
    "mean over i of (u[i] - trust.centres[g, i])^2) - (the mean over i of v[i]^2); t comes from d "
    "by straight lines through the points (trust_knots[0][i], trust_knots[1][i]), beyond the first "
    "and the last point their values. Where t is 1, p stays. Else, with s[m] = log(r / (1 - r)), r "
    "= p[m] kept between 1e-7 and 1 - 1e-7, and l the mean of s over the first trust_n_level "
    "targets: p[m] becomes 1 / (1 + exp(-(l + t (s[m] - l) + (1 - t) trust.usual[m]))), and this "
    "p[m] is P(target m answers correctly)."
)
_COSTS = (
    "cost[m] in USD, with c = costs[m] and query_tokens the tokens of the query alone by the "
    "tokenizer of encoder 0: t = max(0, query_tokens + c.extra_input_tokens); o = "
    "c.output_tokens; cost[m] = (t c.input_price + o c.output_price) / 1e6, less t c.cached_share "
    "(c.input_price - c.cached_input_price) / 1e6 where the cached price is known. Where a price "
    "is unknown it is c.mean_cost, and where that is too, unknown."
)
_LENGTHS = (
    " Where c.output_tokens_from is head, o = max(0, exp(y) lengths.smear[m] - 1), with y = x @ "
    "lengths.weight[:, m] + lengths.bias[m] kept between lengths.range[m, 0] and "
    "lengths.range[m, 1]."
)
_LIMITS = (
    "A target is a candidate where query_tokens is less than limits.context_windows[m], if that is "
    "known, and limits.modalities[m] is empty or holds text and all that the query holds."
)
_CANDIDATES = "Every target is a candidate."
_TIES = (
    " Of several such targets the cheapest is taken, of equally cheap ones the one of the largest "
    "p, then the first; an unknown cost counts as infinite."
)
_UTILITY = "the candidate of the largest lam p[m] - (1 - lam) (cost[m] - low) / (high - low)"
_SAME = "; (high - low) is taken for 1 where it is 0."
_MIXTURE = (
    "Let u be the BLAKE2b digest of 4 bytes of the query's UTF-8 text, read as a little-endian "
    "unsigned integer, divided by 2^32; with the numbers of policy.fitted, lam = lam_high where "
    f"u < share_high, else lam_low. Answers: {_UTILITY}{_SAME}"
)
_POLICIES = {
    "argmax": "Answers: the candidate of the largest p[m].",
    "tolerance": "Answers: the cheapest of the candidates with p[m] >= (the largest p of a "
    "candidate) - policy.tau (1 + 1e-6).",
    "value": "Answers: the candidate of the largest policy.usd p[m] - cost[m].",
    "utility": f"With lam = policy.lam and (low, high) = policy.cost_range answers: {_UTILITY}"
    f"{_SAME} Where lam is 1 costs only break ties.",
    "budget": _MIXTURE,
    "quality": _MIXTURE,
}


def formula(router: Router) -> dict[str, str]:
    """What is to be computed of a query, step by step; only the steps that the router has.

    Raises:
      ValueError: The router's policy has not been fitted, or is none of POLICIES.
    """
    policy = router.policy
    if policy.name not in _POLICIES or None in policy.to_json().values():
        raise ValueError(
            f"the router's policy {policy} cannot be written down: "
            + ("fit it with fit_policy first" if policy.name in _POLICIES else
               f"only {', '.join(_POLICIES)} can")
        )  # fmt: skip
    poolings = {name: _POOLINGS[name] for part in router.features.parts for _, name in part.sites}
    steps = {
        "notation": _NOTATION,
        "states": _STATES,
        "poolings": "; ".join(f"{name}: {words}" for name, words in poolings.items()) + ".",
        "features": _FEATURES,
        "trunk": _TRUNK,
        "kernel": _KERNEL if router.kernel is not None else "",
        "calibration": _CALIBRATION,
        "trust": _TRUST if router.trust is not None else "",
        "costs": _COSTS + (_LENGTHS if "head" in router.costs.sources else ""),
        "candidates": _CANDIDATES if router.limits is None else _LIMITS,
        "policy": _POLICIES[policy.name] + _TIES,
    }
    return {name: words for name, words in steps.items() if words}
