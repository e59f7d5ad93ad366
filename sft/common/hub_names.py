"""Old names on the Hugging Face Hub, without a namespace, of well-known datasets and models."""

from __future__ import annotations

_DATASETS = {
    "abisee": "cnn_dailymail",
    "allenai": "ai2_arc c4 common_gen cosmos_qa math_qa openbookqa quac sciq social_i_qa winogrande",
    "aps": "super_glue",
    "bookcorpus": "bookcorpus",
    "cais": "mmlu",
    "cardiffnlp": "tweet_eval",
    "cimec": "lambada",
    "cornell-movie-review-data": "rotten_tomatoes",
    "dair-ai": "emotion",
    "databricks": "databricks-dolly-15k",
    "deepmind": "aqua_rat narrativeqa pg19",
    "EdinburghNLP": "xsum",
    "ehovy": "race",
    "eriktks": "conll2003",
    "facebook": "xnli",
    "fancyzhx": "ag_news amazon_polarity dbpedia_14",
    "FiscalNote": "billsum",
    "google": "boolq",
    "google-research-datasets": "mbpp natural_questions paws",
    "Helsinki-NLP": "opus_books",
    "hotpotqa": "hotpot_qa",
    "karpathy": "tiny_shakespeare",
    "mandarjoshi": "trivia_qa",
    "microsoft": "wiki_qa",
    "nyu-mll": "glue multi_nli",
    "openai": "gsm8k openai_humaneval",
    "ParlAI": "blended_skill_talk",
    "rajpurkar": "squad squad_v2",
    "Rowan": "hellaswag",
    "Salesforce": "wikitext",
    "Skylion007": "openwebtext",
    "stanfordnlp": "coqa imdb snli sst2",
    "tatsu-lab": "alpaca",
    "tau": "commonsense_qa",
    "truthfulqa": "truthful_qa",
    "ucinlp": "drop",
    "wikimedia": "wikipedia",
    "wmt": "wmt14 wmt16 wmt19",
    "ybisk": "piqa",
    "Yelp": "yelp_review_full",
}
_MODELS = {
    "albert": "albert-base-v1 albert-base-v2 albert-large-v2 albert-xlarge-v2 albert-xxlarge-v2",
    "almanach": "camembert-base",
    "distilbert": (
        "distilgpt2 distilbert-base-uncased distilbert-base-cased distilbert-base-multilingual-cased distilroberta-base"
    ),
    "FacebookAI": "roberta-base roberta-large roberta-large-mnli xlm-roberta-base xlm-roberta-large",
    "google-bert": (
        "bert-base-uncased bert-base-cased bert-large-uncased bert-large-cased bert-base-multilingual-cased "
        "bert-base-multilingual-uncased bert-base-chinese bert-base-german-cased"
    ),
    "google-t5": "t5-small t5-base t5-large t5-3b t5-11b",
    "openai-community": "gpt2 gpt2-medium gpt2-large gpt2-xl openai-gpt",
    "Salesforce": "ctrl",
    "transfo-xl": "transfo-xl-wt103",
    "xlnet": "xlnet-base-cased xlnet-large-cased",
}
"""Namespace -> the names in it."""


def full_name(name: str, what: str) -> str | None:
    """The name with its namespace; None if it has one, or is not known.

    Args:
        name: as given.
        what: `model` or `dataset`.
    """
    known = _DATASETS if what == "dataset" else _MODELS
    wanted = name.strip().lower()
    return next((f"{space}/{each}" for space, names in known.items() for each in names.split() if each == wanted), None)


def full_name_hint(name: str, what: str) -> str:
    """A sentence to append to a message about a name that was not found; empty if the name is not a known old one."""
    found = full_name(name, what)
    return "" if found is None else f" On the Hub, this {what} has a namespace: write {found}."
