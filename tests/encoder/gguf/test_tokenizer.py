"""The tokenizer of a GGUF gives the ids of the tokenizer.json that it was written from."""

import heapq
import json
import pathlib
import types

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import generate_merges
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from routerjax.encoder.gguf.tokenizer import read_gguf_tokenizer
from routerjax.encoder.prompts import Prompter

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
TEXTS = (
    "Hello world! 123",
    "  multiple   spaces and\ttabs \n\n  new lines\r\n",
    "I'm sure they'LL say it's 12345.67 or 1,000,000 -- don't you?",
    "camelCaseWord HTMLParser ABCdef x1y2 foo_bar/baz //// {}();",
    "Café déjà vu, cafe\u0301; 你好世界 ½ ²³ ٣٤ 🙂🙂",
    "a<|mark|>b <|mark|> c<tool>d",
    "\n",
    " ",
)
# What the tokenizer.json of Llama 3, GPT-4o and Mistral's Tekken have.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
# As DeepSeek-V3's tokenizer.json has them, one after the other.
DEEPSEEK = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(words), "isolated")
        for words in (
            r"\p{N}{1,3}",
            "[一-龥\u3040-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )
    ]
)
# tokenizer.ggml.pre -> the original's split (None: ByteLevel's own), and whether it normalises.
ORIGINALS = {
    "llama-bpe": (LLAMA3, False),
    "smaug-bpe": (LLAMA3, False),
    "deepseek-v3": (DEEPSEEK, False),
    "lfm2": (LLAMA3, False),
    "glm4": (LLAMA3, False),
    "qwen2": (PRETOKENIZE_REGEX, True),
    "gpt-4o": (GPT4O, False),
    "tekken": (TEKKEN, False),
    "gpt-2": (None, False),
    "smollm": (DIGITS, False),
    "refact": (DIGITS, False),
}


def file_of(architecture="llama", template=None, **values):
    metadata = {f"tokenizer.ggml.{name}": value for name, value in values.items()}
    metadata |= {"general.architecture": architecture, "tokenizer.chat_template": template}
    return types.SimpleNamespace(path=pathlib.Path("x.gguf"), metadata=metadata)


def written(tokenizer: Tokenizer, **values):
    """The GGUF of a byte-level tokenizer, as the converter writes its tokenizer.json."""
    raw = json.loads(tokenizer.to_str())
    added = {each["id"]: each for each in raw["added_tokens"]}
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    kinds = [
        NORMAL if i not in added else CONTROL if added[i]["special"] else USER
        for i in range(len(tokens))
    ]
    merges = [" ".join(pair) for pair in raw["model"]["merges"]]
    return file_of(model="gpt2", tokens=tokens, token_type=kinds, merges=merges, **values)


@pytest.fixture(scope="module")
def corpus():
    root = pathlib.Path(__file__).parents[3]
    texts = [(root / name).read_text()[:40_000] for name in ("README.md", "BUILD_NOTES.md")]
    return [*texts, *TEXTS, "grüße, déjà vu, 你好世界 你好"] * 2


def byte_level(corpus, split, normalises):
    """A trained tokenizer as the original's tokenizer.json is."""
    tokenizer = Tokenizer(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in (None, DIGITS))
    if isinstance(split, str):
        split = pre_tokenizers.Split(Regex(split), "isolated")
    parts = [to_bytes] if split is None else [split, to_bytes]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    if normalises:
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken("<|mark|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


@pytest.mark.parametrize("pre", ORIGINALS)
def test_byte_level_ids_are_the_originals(corpus, pre):
    original = byte_level(corpus, *ORIGINALS[pre])
    ours = read_gguf_tokenizer(written(original, pre=pre))
    assert len(ours) == original.get_vocab_size()
    for text in TEXTS:
        expected = original.encode(text)
        found = ours(text, return_offsets_mapping=True)
        assert found["input_ids"] == expected.ids, text
        assert found["offset_mapping"] == expected.offsets, text
        assert words(ours.backend_tokenizer, text) == words(original, text)
    assert ours.decode(ours(TEXTS[0])["input_ids"]) == TEXTS[0]


def words(tokenizer, text):
    return tokenizer.pre_tokenizer.pre_tokenize_str(text)


def test_ways_of_splitting_differ(corpus):
    original = byte_level(corpus, *ORIGINALS["llama-bpe"])
    found = set()
    for pre in ("llama-bpe", "qwen2", "gpt-4o", "tekken", "gpt-2", "smollm"):
        tokenizer = read_gguf_tokenizer(written(original, pre=pre)).backend_tokenizer
        found.add(str([words(tokenizer, text) for text in TEXTS]))
    assert len(found) == 6


@pytest.mark.parametrize(
    ("values", "before", "behind"),
    [
        ({"pre": "qwen2"}, 0, 0),
        ({"pre": "llama-bpe"}, 1, 0),
        ({"pre": "tekken"}, 1, 0),
        ({"pre": "lfm2"}, 1, 0),
        ({"pre": "glm4"}, 0, 0),
        ({"pre": "llama-bpe", "add_bos_token": False}, 0, 0),
        ({"pre": "smollm", "add_bos_token": True, "add_eos_token": True}, 1, 1),
    ],
)
def test_what_stands_around_a_text(corpus, values, before, behind):
    original = byte_level(corpus, *ORIGINALS["gpt-2"])
    bos, eos = original.token_to_id("<|mark|>"), original.token_to_id("<tool>")
    file = written(original, bos_token_id=bos, eos_token_id=eos, padding_token_id=eos, **values)
    tokenizer = read_gguf_tokenizer(file)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|mark|>", "<tool>")
    ids = tokenizer("it")["input_ids"]
    bare = tokenizer("it", add_special_tokens=False)["input_ids"]
    assert ids == [bos] * before + bare + [eos] * behind


def test_the_chat_template_is_the_files(corpus):
    original = byte_level(corpus, *ORIGINALS["qwen2"])
    template = (
        "<|mark|>{{ messages[0].content }}<|mark|>{% if add_generation_prompt %}go{% endif %}"
    )
    tokenizer = read_gguf_tokenizer(written(original, pre="qwen2", template=template))
    prompts = Prompter(tokenizer, 100)(["What is it?"])
    text = "<|mark|>What is it?<|mark|>go"
    assert prompts.tokens[0].tolist() == original.encode(text).ids
    start, end = prompts.spans_N2[0]
    assert tokenizer.decode(prompts.tokens[0][start:end]) == "What is it?"


def sentence_piece(corpus, prepends):
    """A trained vocabulary of pieces: tokens, kinds and scores as tokenizer.model has them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.BpeTrainer(vocab_size=420, limit_alphabet=120, show_progress=False)
    tokenizer.train_from_iterator([text.replace("\n", " ") for text in corpus], trainer)
    raw = json.loads(tokenizer.to_str())["model"]
    merged = ["".join(pair) for pair in raw["merges"]]
    single = [token for token in raw["vocab"] if token not in merged]
    heads = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    heads += [(f"<0x{i:02X}>", BYTE) for i in range(256)] + [("<tool>", USER)]
    pieces = [*dict.fromkeys(merged), *single]
    return file_of(
        model="llama", pre="default", add_space_prefix=prepends,
        tokens=[token for token, _ in heads] + pieces,
        token_type=[kind for _, kind in heads] + [NORMAL] * len(pieces),
        scores=[0.0] * len(heads) + [-float(i) for i in range(len(pieces))],
        bos_token_id=1, eos_token_id=2, unknown_token_id=0,
    )  # fmt: skip


def by_scores(metadata, text):
    """SentencePiece's algorithm: put together the two that make the best piece, the left ones."""
    tokens = metadata["tokenizer.ggml.tokens"]
    scores = dict(zip(tokens, metadata["tokenizer.ggml.scores"], strict=True))
    pieces = list(text)
    while True:
        pairs = [
            (-scores[a + b], i)
            for i, (a, b) in enumerate(zip(pieces, pieces[1:], strict=False))
            if a + b in scores
        ]
        if not pairs:
            break
        _, i = heapq.nsmallest(1, pairs)[0]
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    ids = {token: i for i, token in enumerate(tokens)}
    return [
        i for piece in pieces
        for i in ([ids[piece]] if piece in ids else [ids[f"<0x{b:02X}>"] for b in piece.encode()])
    ]  # fmt: skip


@pytest.mark.parametrize("prepends", [True, False])
def test_sentence_piece_ids_are_those_of_its_algorithm(corpus, prepends):
    file = sentence_piece(corpus, prepends)
    tokenizer = read_gguf_tokenizer(file)
    for text in (*TEXTS[:5], "the tokenizer of the encoder is the store's, not the router's"):
        spaced = "\u2581" * prepends + text.replace(" ", "\u2581")
        assert tokenizer(text)["input_ids"] == [1, *by_scores(file.metadata, spaced)], text
    tool = file.metadata["tokenizer.ggml.tokens"].index("<tool>")
    ids = tokenizer("a<tool>b", add_special_tokens=False)["input_ids"]
    assert ids.count(tool) == 1 and tokenizer.unk_token_id == 0


def test_merges_of_scores_are_those_of_transformers(corpus):
    """Also where scores are equal, as those of Gemma's runs of white space are."""
    file = sentence_piece(corpus, False)
    tokens, kinds, scores = (
        file.metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "scores")
    )
    for run in ("\u2581" * n for n in range(2, 12)):
        if run not in tokens:
            tokens.append(run), kinds.append(USER), scores.append(0.0)
        scores[tokens.index(run)] = 0.0
    ids = {token: i for i, token in enumerate(tokens)}
    skipped = [t for t, kind in zip(tokens, kinds, strict=True) if kind not in (NORMAL, USER)]
    ours = json.loads(read_gguf_tokenizer(file).backend_tokenizer.to_str())["model"]["merges"]
    theirs = generate_merges(ids, dict(zip(tokens, scores, strict=True)), skip_tokens=skipped)
    assert [tuple(pair) for pair in ours] == theirs


def test_marks_of_phi_3_take_the_white_space_behind_them(corpus):
    file = sentence_piece(corpus, True)
    plain = read_gguf_tokenizer(file)("</s> \n x")["input_ids"]
    file.metadata["general.architecture"] = "phi3"
    assert read_gguf_tokenizer(file)("</s> \n x")["input_ids"] == plain[:2] + plain[-2:]


@pytest.fixture(scope="module")
def word_pieces(minilm):
    """MiniLM's own tokenizer, and its vocabulary as the converter writes it."""
    original = AutoTokenizer.from_pretrained(minilm)
    vocabulary = original.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    special = set(original.all_special_tokens)
    marked = [t if t in special else t[2:] if t.startswith("##") else f"\u2581{t}" for t in tokens]
    kinds = [CONTROL if t in special else NORMAL for t in tokens]
    ids = {
        f"{gguf}_token_id": vocabulary[getattr(original, f"{ours}_token")]
        for gguf, ours in (
            ("cls", "cls"), ("seperator", "sep"), ("unknown", "unk"), ("padding", "pad"),
            ("mask", "mask"),
        )
    }  # fmt: skip
    return original, file_of("bert", model="bert", tokens=marked, token_type=kinds, **ids)


def test_word_piece_ids_are_those_of_the_original(word_pieces):
    original, file = word_pieces
    tokenizer = read_gguf_tokenizer(file)
    for text in (*TEXTS[:5], "unaffable naïve [MASK] [SEP] ÀÉ"):
        assert tokenizer(text)["input_ids"] == original(text)["input_ids"], text
    assert tokenizer.pad_token == "[PAD]" and tokenizer.mask_token == "[MASK]"


def test_a_vocabulary_with_capitals_keeps_them():
    tokens = ["[UNK]", "[CLS]", "[SEP]", "\u2581Two", "\u2581two", "s"]
    kinds = [CONTROL] * 3 + [NORMAL] * 3
    ids = {"cls_token_id": 1, "seperator_token_id": 2, "unknown_token_id": 0}
    tokenizer = read_gguf_tokenizer(
        file_of("bert", model="bert", tokens=tokens, token_type=kinds, **ids)
    )
    assert tokenizer("Two twos")["input_ids"] == [1, 3, 4, 5, 2]


def test_what_is_not_supported_is_refused_with_the_files_name(corpus):
    original = byte_level(corpus, *ORIGINALS["gpt-2"])
    fine = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b"], "merges": ["a b"]}
    for values, message in (
        (fine | {"model": "t5"}, "is 't5', of which only 'gpt2', 'llama', 'bert' are supported"),
        (fine | {"tokens": None}, "has no tokenizer"),
        (fine | {"merges": None}, "has no merges"),
        (fine | {"token_type": [1]}, "token_type has 1 entries for 2 tokens"),
        (fine | {"model": "llama"}, "has no tokenizer .tokenizer.ggml.scores"),
        (fine | {"model": "llama", "tokens": ["a" * 1025]}, "up to 1,025 characters, 1,025 tog"),
        (fine | {"pre": "odd"}, "tokenizer.ggml.pre. is 'odd', of which only command-r, dbrx"),
        (fine | {"pre": None}, "tokenizer.ggml.pre. is None"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read_gguf_tokenizer(file_of(**values))
        assert str(error.value).startswith("x.gguf: ")
    assert read_gguf_tokenizer(written(original, pre="gpt-2")).bos_token is None
