"""Tokenizers and chat templates in the conventions of the families, small enough to read.

Not a test. Each template is written for this file: it has its family's marks, order, white space
and settings for one user turn, and none of what is for tools or for several turns.
"""

from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece
from transformers import PreTrainedTokenizerFast

_LETTERS = [chr(code) for code in range(33, 127)]


class Family(NamedTuple):
    """How a family's prompt is made, and what must come out.

    Attributes:
      tokenizer: Of the family's kind, without a pad token.
      prompt: What the model reads for the query QUERY, on 1 January 2025.
      settings: The chat_template_kwargs.
      n_bos: How often BOS stands in it.
      trims: Whether white space around a query goes.
      mark_takes_space: Whether a mark of the template takes white space of the query's beginning.
    """

    tokenizer: Any
    prompt: str
    settings: dict[str, Any] = {}
    n_bos: int = 0
    trims: bool = False
    mark_takes_space: bool = False


QUERY = "two words"


def byte_level(template, marks, bos=None, adds_bos=False, sep=None):
    """GPT-2's, Llama 3's and Qwen's kind: bytes, a word with its space, offsets without it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("\u010a", "\u010a"), ("\u0120", "\u0120"), ("\u0120", "t"), ("\u0120", "w")]
    vocab = {token: i for i, token in enumerate([*alphabet, *map("".join, merges)])}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return _fast(tokenizer, template, marks, bos, adds_bos, sep)


def sentence_piece(template, marks, bos="<s>", adds_bos=True, prepends=True):
    """Llama 2's, Mistral's, Phi 3's and Gemma's kind: "\u2581" for spaces, bytes where it lacks."""
    pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "\n", *_LETTERS]
    merges = [("\u2581", "\u2581"), ("\u2581", "t"), ("\u2581", "w"), ("w", "o")]
    vocab = {token: i for i, token in enumerate([*pieces, *map("".join, merges)])}
    tokenizer = Tokenizer(
        BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    spaces = normalizers.Replace(" ", "\u2581")
    both = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
    tokenizer.normalizer = both if prepends else spaces
    return _fast(tokenizer, template, marks, bos, adds_bos)


def word_piece():
    """BERT's kind: lower case, words in pieces, [CLS] and [SEP] around them, no template."""
    words = ["[UNK]", "two", "word", "##s", *_LETTERS, *(f"##{x}" for x in _LETTERS)]
    tokenizer = Tokenizer(WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast = _fast(tokenizer, None, [], "[CLS]", True, "[SEP]")
    fast.bos_token = None
    return fast


def _fast(tokenizer, template, marks, bos, adds_bos, sep=None):
    names = [name for name in (bos, sep) if name]
    tokenizer.add_special_tokens([*names, *marks])
    if adds_bos:
        pairs = [(name, tokenizer.token_to_id(name)) for name in names]
        single = f"{bos} $A {sep}" if sep else f"{bos} $A"
        adding = processors.TemplateProcessing(single=single, special_tokens=pairs)
        earlier = tokenizer.post_processor
        parts = [adding] if earlier is None else [earlier, adding]
        tokenizer.post_processor = processors.Sequence(parts)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos)
    fast.chat_template = template
    return fast


_IM = ["<|im_start|>", "<|im_end|>"]
_TURNS = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
)
_CHATML = "<|im_start|>user\ntwo words<|im_end|>\n<|im_start|>assistant\n"

# A default system turn where the chat has none.
QWEN2 = (
    "{% if messages[0].role != 'system' %}{{- '<|im_start|>system\nYou help.<|im_end|>\n' }}"
    "{% endif %}" + _TURNS + "{%- endif %}"
)
QWEN3 = (
    _TURNS + "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
# The content may come in parts; thinking is open unless switched off.
QWEN3_5 = (
    "{%- macro text_of(content) %}{%- if content is string %}{{- content }}{%- else %}"
    "{%- for part in content %}{{- part.text }}{%- endfor %}{%- endif %}{%- endmacro %}"
    "{%- if not messages %}{{- raise_exception('No messages provided.') }}{%- endif %}"
    "{%- for m in messages %}{%- set content = text_of(m.content) | trim %}"
    "{{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- else %}{{- '<think>\n' }}{%- endif %}{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- if not date_string is defined %}"
    "{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0].content | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' }}"
    "{{- system + '<|eot_id|>' }}{%- for m in messages %}{{- '<|start_header_id|>' + m.role "
    "+ '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
_LLAMA3_PROMPT = (
    "<|begin|><|start_header_id|>system<|end_header_id|>\n\nToday Date: {}\n\n<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\ntwo words<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
# Turns alternate; a system turn is refused.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}"
)
# Zephyr's: a fine-tuned Mistral, whose template writes no BOS.
ZEPHYR = (
    "{% for m in messages %}\n{% if m.role == 'user' %}\n{{ '<|user|>\n' + m.content + '</s>' }}\n"
    "{% elif m.role == 'system' %}\n{{ '<|system|>\n' + m.content + '</s>' }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
OLMO2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<|user|>\n' + m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SMOLLM3 = (
    "{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}\n"
    "{%- set mode = '/think' if enable_thinking else '/no_think' -%}\n"
    "{%- set today = strftime_now('%d %B %Y') -%}\n"
    "{{- '<|im_start|>system\nToday Date: ' + today + '\nReasoning Mode: ' + mode -}}\n"
    "{{- '<|im_end|>\n' -}}\n{%- for m in messages -%}\n"
    "{%- set content = m.content if m.content is string else '' -%}\n"
    "{{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' -}}\n{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n{{- '<|im_start|>assistant\n' -}}\n"
    "{%- if not enable_thinking -%}\n{{- '<think>\n\n</think>\n' -}}\n{%- endif -%}\n{%- endif -%}"
)
GRANITE = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0].content %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}"
    '{%- set system = "Today\'s Date: " + strftime_now("%B %d, %Y") + "." %}'
    "{%- if thinking %}{%- set system = system + ' Think first.' %}{%- endif %}"
    "{%- set loop_messages = messages %}{%- endif %}"
    "{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\n' }}"
    "{%- for m in loop_messages %}{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content"
    " + '<|end_of_text|>\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"
)
# Harmony: the date and the effort are written by a macro.
GPT_OSS = (
    "{#- Reads reasoning_effort and, unlike others, no comment_only. #}"
    "{%- macro system_text() %}{%- if model_identity is not defined %}"
    "{%- set model_identity = 'You are a model.' %}{%- endif %}{{- model_identity + '\n' }}"
    '{{- "Current date: " + strftime_now("%Y-%m-%d") + "\n\n" }}'
    "{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}"
    "{{- 'Reasoning: ' + reasoning_effort }}{%- endmacro %}"
    "{{- '<|start|>system<|message|>' }}{{- system_text() }}{{- '<|end|>' }}"
    "{%- for m in messages %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
_GPT_OSS_PROMPT = (
    "<|start|>system<|message|>You are a model.\nCurrent date: 2025-01-01\n\nReasoning: {}<|end|>"
    "<|start|>user<|message|>two words<|end|><|start|>assistant"
)
_SMOLLM3_SYSTEM = "<|im_start|>system\nToday Date: 01 January 2025\nReasoning Mode: {}<|im_end|>\n"
_GRANITE_PROMPT = (
    "<|start_of_role|>system<|end_of_role|>Today's Date: January 01, 2025.{}<|end_of_text|>\n"
    "<|start_of_role|>user<|end_of_role|>two words<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>"
)

_HEADERS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_PHI3_MARKS = [AddedToken(name, rstrip=True) for name in ("<|user|>", "<|end|>", "<|assistant|>")]
_THINKING_OFF = {"enable_thinking": False}


def families() -> dict[str, Family]:
    """The table, by name."""
    qwen = [*_IM, "<|endoftext|>"]
    llama3 = byte_level(LLAMA3, _HEADERS, "<|begin|>", adds_bos=True)
    smollm3 = byte_level(SMOLLM3, _IM)
    granite = byte_level(
        GRANITE, ["<|start_of_role|>", "<|end_of_role|>"], "<|end_of_text|>", adds_bos=False
    )
    gpt_oss = byte_level(GPT_OSS, ["<|start|>", "<|message|>", "<|end|>"], "<|startoftext|>")
    phi3 = sentence_piece(PHI3, ["</s>", *_PHI3_MARKS], adds_bos=False)
    return {
        "qwen2": Family(
            byte_level(QWEN2, qwen), "<|im_start|>system\nYou help.<|im_end|>\n" + _CHATML
        ),
        "qwen3": Family(byte_level(QWEN3, qwen), _CHATML),
        "qwen3 not thinking": Family(
            byte_level(QWEN3, qwen), _CHATML + "<think>\n\n</think>\n\n", _THINKING_OFF
        ),
        "qwen3_5": Family(byte_level(QWEN3_5, qwen), _CHATML + "<think>\n", trims=True),
        "qwen3_5 not thinking": Family(
            byte_level(QWEN3_5, qwen),
            _CHATML + "<think>\n\n</think>\n\n",
            _THINKING_OFF,
            trims=True,
        ),
        "llama": Family(llama3, _LLAMA3_PROMPT.format("01 Jan 2025"), n_bos=1, trims=True),
        "llama on a given date": Family(
            llama3,
            _LLAMA3_PROMPT.format("04 Jul 2026"),
            {"date_string": "04 Jul 2026"},
            n_bos=1,
            trims=True,
        ),
        "mistral": Family(
            sentence_piece(MISTRAL, ["</s>", "[INST]", "[/INST]"], prepends=False),
            "<s>[INST] two words [/INST]",
            n_bos=1,
        ),
        "mistral without marks": Family(
            sentence_piece(MISTRAL, ["</s>"]), "<s>[INST] two words [/INST]", n_bos=1
        ),
        "zephyr": Family(
            sentence_piece(ZEPHYR, ["</s>"]), "<|user|>\ntwo words</s>\n<|assistant|>\n"
        ),
        "gemma": Family(
            sentence_piece(
                GEMMA,
                ["<start_of_turn>", "<end_of_turn>", AddedToken("\n\n", normalized=False)],
                "<bos>",
                prepends=False,
            ),
            "<bos><start_of_turn>user\ntwo words<end_of_turn>\n<start_of_turn>model\n",
            n_bos=1,
            trims=True,
        ),
        "phi3": Family(phi3, "<|user|>\ntwo words<|end|>\n<|assistant|>\n", mark_takes_space=True),
        "olmo2": Family(
            byte_level(OLMO2, [], "<|endoftext|>"),
            "<|endoftext|><|user|>\ntwo words\n<|assistant|>\n",
            n_bos=1,
        ),
        "smollm3": Family(smollm3, _SMOLLM3_SYSTEM.format("/think") + _CHATML),
        "smollm3 not thinking": Family(
            smollm3,
            _SMOLLM3_SYSTEM.format("/no_think") + _CHATML + "<think>\n\n</think>\n",
            _THINKING_OFF,
        ),
        # Its BOS is the end of its turns too.
        "granite": Family(granite, _GRANITE_PROMPT.format(""), n_bos=2),
        "granite thinking": Family(
            granite, _GRANITE_PROMPT.format(" Think first."), {"thinking": True}, n_bos=2
        ),
        "gpt_oss": Family(gpt_oss, _GPT_OSS_PROMPT.format("medium")),
        "gpt_oss with little effort": Family(
            gpt_oss, _GPT_OSS_PROMPT.format("low"), {"reasoning_effort": "low"}
        ),
        "roberta": Family(
            byte_level(None, [], "<s>", adds_bos=True, sep="</s>"), "<s>two words</s>", n_bos=1
        ),
        "bert": Family(word_piece(), "[CLS]two words[SEP]", trims=True),
    }
