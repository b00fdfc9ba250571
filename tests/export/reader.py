"""Reads an export of `rj.export.safetensors` by what its model.json says, with NumPy alone."""

import hashlib
import json
import struct

import numpy as np


def arrays(data):
    """The arrays of a safetensors file: a header's length, the header in JSON, the numbers."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
    }


class Reader:
    def __init__(self, folder):
        self.json = json.loads((folder / "model.json").read_text())
        data = (folder / self.json["arrays"]["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == self.json["arrays"]["sha256"]
        self.arrays = arrays(data)

    def features(self, h):
        """h[e][layer, pooling] is [D]."""
        x = []
        for i, part in enumerate(self.json["parts"]):
            mean, scale, components = (
                self.arrays[f"features.{i}.{name}"] for name in ("mean", "scale", "components")
            )
            x.append(
                sum(
                    ((h[part["encoder"]][tuple(site)] - mean[s]) / scale[s]) @ components[s]
                    for s, site in enumerate(part["sites"])
                )
            )
        return np.concatenate(x)

    def probabilities(self, x):
        a, n_hidden = self.arrays, self.json["n_hidden"]
        members = []
        for k in range(len(a["trunk.0.bias"])):
            y = x
            for j in range(n_hidden):
                y = np.maximum(0, y @ a[f"trunk.{j}.kernel"][k] + a[f"trunk.{j}.bias"][k])
            z = y @ a[f"trunk.{n_hidden}.kernel"][k] + a[f"trunk.{n_hidden}.bias"][k]
            members.append(1 / (1 + np.exp(-z)))
        p = np.mean(members, axis=0)
        if "kernel_width" in self.json:
            distance = np.square(x - a["kernel.x"]).sum(axis=1)
            g = np.exp(-distance / (2 * self.json["kernel_width"]))
            q = np.clip(a["kernel.mean"] + g @ a["kernel.alpha"], 0.005, 0.995)
            p = (1 - a["kernel.share"]) * p + a["kernel.share"] * q
        p = np.array([self.calibrated(c, p[m]) for m, c in enumerate(self.json["calibration"])])
        if "trust_knots" in self.json:
            u, v = x @ a["trust.within"], (x - a["trust.middle"]) @ a["trust.all"]
            d = np.square(u - a["trust.centres"]).mean(axis=1).min() - np.square(v).mean()
            t = np.interp(d, *self.json["trust_knots"])
            if t < 1:
                r = np.clip(p, 1e-7, 1 - 1e-7)
                s = np.log(r / (1 - r))
                level = s[: self.json["trust_n_level"]].mean()
                drawn = level + t * (s - level) + (1 - t) * a["trust.usual"]
                p = 1 / (1 + np.exp(-drawn))
        return p

    def calibrated(self, curve, p):
        if curve["method"] == "none":
            return p
        if curve["method"] == "isotonic":
            return np.interp(p, *curve["knots"])
        r = np.clip(p, 1e-7, 1 - 1e-7)
        return 1 / (1 + np.exp(-(curve["slope"] * np.log(r / (1 - r)) + curve["shift"])))

    def costs(self, x, query_tokens):
        return np.array([self.cost(m, x, query_tokens) for m in range(len(self.json["targets"]))])

    def cost(self, m, x, query_tokens):
        c, a = self.json["costs"][m], self.arrays
        if c["input_price"] is None or c["output_price"] is None:
            return np.nan if c["mean_cost"] is None else c["mean_cost"]
        t, o = max(0, query_tokens + c["extra_input_tokens"]), c["output_tokens"]
        if c["output_tokens_from"] == "head":
            y = x @ a["lengths.weight"][:, m] + a["lengths.bias"][m]
            y = np.clip(y, a["lengths.range"][m, 0], a["lengths.range"][m, 1])
            o = max(0, np.exp(y) * a["lengths.smear"][m] - 1)
        usd = t * c["input_price"] + o * c["output_price"]
        if c["cached_input_price"] is not None:
            usd -= t * c["cached_share"] * (c["input_price"] - c["cached_input_price"])
        return usd / 1e6

    def target(self, p, cost, query, query_tokens):
        """The name of the target that answers a text."""
        policy, candidates = self.json["policy"], list(range(len(p)))
        if limits := self.json.get("limits"):
            candidates = [
                m for m, window in enumerate(limits["context_windows"])
                if (window is None or query_tokens < window)
                and (not limits["modalities"][m] or "text" in limits["modalities"][m])
            ]  # fmt: skip
        p, cost = p.astype(float), np.where(np.isnan(cost), np.inf, cost)
        if policy["name"] == "tolerance":
            score = -cost
            highest = max(p[m] for m in candidates)
            candidates = [m for m in candidates if p[m] >= highest - policy["tau"] * (1 + 1e-6)]
        elif policy["name"] == "argmax":
            score = p
        elif policy["name"] == "value":
            score = policy["usd"] * p - cost
        else:
            if policy["name"] == "utility":
                lam, (low, high) = policy["lam"], policy["cost_range"]
            else:
                fitted, hashed = policy["fitted"], hashlib.blake2b(query.encode(), digest_size=4)
                u = struct.unpack("<I", hashed.digest())[0] / 2**32
                lam = fitted["lam_high" if u < fitted["share_high"] else "lam_low"]
                low, high = fitted["low"], fitted["high"]
            score = lam * p - (1 - lam) * (cost - low) / (high - low or 1)
        return self.json["targets"][max(candidates, key=lambda m: (score[m], -cost[m], p[m], -m))]
