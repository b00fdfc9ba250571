"""The tokenizer of a GGUF: from the vocabulary in its metadata to one of the tokenizers library.

A GGUF has the tokens, their kinds, merges or scores, and names how text is split; how the library
does the same is said here, once per way of splitting.
"""

from typing import Any

from routerjax.encoder.gguf.file import GgufFile

# Kinds of tokens.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Words in which a capital begins a new one.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ANY_CASE = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}"
_GPT4O = "|".join(
    (*(f"{word}{_CONTRACTION}?" for word in _ANY_CASE), r"\p{N}{1,3}", _REST_WITH_SLASH)
)
# One after the other: digits; Chinese and Japanese; words, marks and white space.
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_TEKKEN = "|".join((*_ANY_CASE, r"\p{N}", _REST_WITH_SLASH))
_GPT2, _GPT2_DIGITS = "GPT-2", "GPT-2, digits singly"
# tokenizer.ggml.pre -> what is split off as a word.
_SPLITS = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("falcon3", "pixtral", "lfm2", "glm4"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    "tekken": _TEKKEN,
    "deepseek-v3": _DEEPSEEK,
    **dict.fromkeys(("gpt-2", "olmo"), _GPT2),
    **dict.fromkeys(("smollm", "refact", "starcoder", "command-r"), _GPT2_DIGITS),
}
# Those whose files may leave out that BOS is added, and that take a word whole which is a token.
_LLAMA3_KIND = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "tekken")
# Which no GGUF says: Phi 3's marks take the white space behind them, but for these.
_NOT_STRIPPING = ("<s>", "<unk>", "<|endoftext|>")
# Every place at which a token can be cut in two is tried; Gemma's have 93 and 2 million.
_LONGEST, _MOST_CHARACTERS = 2**10, 2**23
_NORMALISED = ("qwen2", "deepseek-r1-qwen")


def read_gguf_tokenizer(file: GgufFile) -> Any:
    """Builds the tokenizer, its special tokens and its chat template.

    Returns:
      A PreTrainedTokenizerFast.

    Raises:
      ValueError: No vocabulary, or one of a kind or with a way of splitting that is not supported.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = _Vocabulary(file)
    kind = vocabulary.get("model")
    if kind not in _KINDS:
        raise ValueError(
            f"{file.path}: its tokenizer (tokenizer.ggml.model) is {kind!r}, of which only "
            f"{', '.join(map(repr, _KINDS))} are supported: take the model's safetensors and "
            f"tokenizer.json"
        )
    tokenizer = _KINDS[kind](vocabulary)
    tokens, kinds = vocabulary.tokens, vocabulary.kinds
    strips = kind == "llama" and file.metadata["general.architecture"] == "phi3"
    tokenizer.add_tokens([
        AddedToken(token, special=each == _CONTROL, normalized=False,
                   rstrip=strips and each == _CONTROL and token not in _NOT_STRIPPING)
        for token, each in zip(tokens, kinds, strict=True)
        if each in (_CONTROL, _USER_DEFINED)
    ])  # fmt: skip
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "mask": "mask"}
    # GGUF's own spelling.
    names |= {"cls": "cls", "sep": "seperator"} if kind == "bert" else {}
    special = {
        f"{ours}_token": tokens[number]
        for ours, theirs in names.items()
        if (number := vocabulary.get(f"{theirs}_token_id")) is not None and number < len(tokens)
    }
    ends = _around(vocabulary, kind)
    if any(ends):
        first, last = ends
        around = [*first, "$A", *last]
        numbers = {token: tokens.index(token) for token in (*first, *last)}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=around, pair=[*around, *first, "$B", *last], special_tokens=[*numbers.items()]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=file.metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
    )


class _Vocabulary:
    """The tokenizer's part of a file's metadata."""

    def __init__(self, file: GgufFile):
        self._file = file
        self.tokens = self._list("tokens", str)
        kinds = self.get("token_type")
        self.kinds = [1] * len(self.tokens) if kinds is None else self._list("token_type", int)

    def get(self, name: str, default: Any = None) -> Any:
        return self._file.metadata.get(f"tokenizer.ggml.{name}", default)

    def _list(self, name: str, of: type) -> list[Any]:
        values = self.get(name)
        if not isinstance(values, list) or not all(isinstance(value, of) for value in values):
            raise self.refuse(f"it has no tokenizer (tokenizer.ggml.{name})")
        if name != "tokens" and len(values) != len(self.tokens):
            raise self.refuse(
                f"tokenizer.ggml.{name} has {len(values)} entries for {len(self.tokens)} tokens"
            )
        return values

    def scores(self) -> list[float]:
        """[tokens] the higher, the earlier a token is put together."""
        return self._list("scores", float)

    def merges(self) -> list[tuple[str, str]]:
        """The pairs that are put together, the first ones first."""
        pairs = [tuple(merge.split(" ")) for merge in self.get("merges") or ()]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise self.refuse("its tokenizer has no merges (tokenizer.ggml.merges)")
        return pairs

    def refuse(self, problem: str) -> ValueError:
        return ValueError(
            f"{self._file.path}: {problem}: take another conversion of the model, or its "
            f"safetensors and tokenizer.json"
        )


def _around(vocabulary: _Vocabulary, kind: str) -> tuple[list[str], list[str]]:
    """The tokens before and behind a text."""

    def token(name: str, default: int | None = None) -> list[str]:
        number = vocabulary.get(f"{name}_token_id", default)
        if number is None:
            return []
        if not isinstance(number, int) or not 0 <= number < len(vocabulary.tokens):
            raise vocabulary.refuse(
                f"tokenizer.ggml.{name}_token_id is {number!r:.80}, there are "
                f"{len(vocabulary.tokens)} tokens"
            )
        return [vocabulary.tokens[number]]

    if kind == "bert":
        return token("cls", vocabulary.get("bos_token_id", 101)), token("seperator", 102)
    by_default = kind == "llama" or vocabulary.get("pre") in _LLAMA3_KIND
    first = token("bos") if vocabulary.get("add_bos_token", by_default) else []
    return first, token("eos") if vocabulary.get("add_eos_token", False) else []


def _byte_level(vocabulary: _Vocabulary) -> Any:
    """GPT-2's kind: merges of bytes, within the words that `tokenizer.ggml.pre` names."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = vocabulary.get("pre")
    if pre not in _SPLITS:
        raise vocabulary.refuse(
            f"how its tokenizer splits text (tokenizer.ggml.pre) is {pre!r}, of which only "
            f"{', '.join(sorted(_SPLITS))} are supported"
        )
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=ids, merges=vocabulary.merges(), ignore_merges=pre in _LLAMA3_KIND)
    )
    words = _SPLITS[pre]
    to_bytes = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=words in (_GPT2, _GPT2_DIGITS)
    )
    if words == _GPT2:
        tokenizer.pre_tokenizer = to_bytes
    else:
        splits = [
            pre_tokenizers.Digits(individual_digits=True)
            if each == _GPT2_DIGITS
            else pre_tokenizers.Split(Regex(each), "isolated")
            for each in ([words] if isinstance(words, str) else words)
        ]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    if pre in _NORMALISED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(vocabulary: _Vocabulary) -> Any:
    """Llama 2's and Gemma's kind: pieces by score, bytes for what has no piece."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    unknown = [t for t, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
               if kind == _UNKNOWN]  # fmt: skip
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=_merges_of_scores(vocabulary, ids),
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=_BYTE in vocabulary.kinds,
        )
    )
    spaces = normalizers.Replace(" ", "\u2581")
    if vocabulary.get("add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
    else:
        tokenizer.normalizer = spaces
        # Without effect but for text that the normaliser has not seen, as Gemma's own has it.
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _merges_of_scores(vocabulary: _Vocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that make a third, the third with the highest score first.

    Of equal scores (runs of white space have them) the longest left piece goes first, and then the
    longest right one, as in the tokenizer.json that transformers makes of such a vocabulary.
    """
    tokens, ranked = vocabulary.tokens, []
    longest, all_of_them = max(map(len, tokens), default=0), sum(map(len, tokens))
    if longest > _LONGEST or all_of_them > _MOST_CHARACTERS:
        raise vocabulary.refuse(
            f"its tokens have up to {longest:,} characters, {all_of_them:,} together, expected at "
            f"most {_LONGEST:,} and {_MOST_CHARACTERS:,}"
        )
    for token, kind, score in zip(tokens, vocabulary.kinds, vocabulary.scores(), strict=True):
        if kind in (_UNKNOWN, _CONTROL, _BYTE):
            continue
        for at in range(1, len(token)):
            left, right = ids.get(token[:at]), ids.get(token[at:])
            if left is not None and right is not None:
                ranked.append((-score, -at, at - len(token), ids[token], left, right))
    ranked.sort()
    return [(tokens[left], tokens[right]) for *_, left, right in ranked]


def _word_piece(vocabulary: _Vocabulary) -> Any:
    """BERT's kind; in a GGUF "\u2581" begins a word, where BERT's own has "##" within one."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    mark, ids = "\u2581", {}
    for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        if kind != _CONTROL:
            begins = token.startswith(mark)
            token = token.removeprefix(mark) if begins else f"##{token}"
        ids[token] = number
    # The names of special tokens are looked up here too.
    vocabulary.tokens = list(ids)
    unknown = vocabulary.get("unknown_token_id")
    tokenizer = Tokenizer(
        models.WordPiece(
            ids,
            unk_token="[UNK]" if unknown is None else vocabulary.tokens[unknown],
            max_input_chars_per_word=100,
        )
    )
    # A GGUF does not say whether case counts; a vocabulary without capitals has none for them.
    cased = any(
        token != token.lower()
        for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        if kind != _CONTROL
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


# tokenizer.ggml.model -> the builder.
_KINDS = {"gpt2": _byte_level, "llama": _sentence_piece, "bert": _word_piece}
