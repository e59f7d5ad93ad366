"""Old names on the Hub, without a namespace."""

import datasets
import pytest

from sft.commands.init.data_inspection import inspect_data
from sft.common.errors import DataError, ModelError
from sft.common.hub_names import _DATASETS, _MODELS, full_name
from sft.configuration.schema import DataConfig
from sft.data.sources.load import open_sources
from sft.modeling.loading_errors import readable_loading_errors
from tests.support import messages

KNOWN = {
    "squad": "rajpurkar/squad",
    "squad_v2": "rajpurkar/squad_v2",
    "gsm8k": "openai/gsm8k",
    "imdb": "stanfordnlp/imdb",
    "glue": "nyu-mll/glue",
    "wikitext": "Salesforce/wikitext",
    "ag_news": "fancyzhx/ag_news",
}
KNOWN_MODELS = {
    "gpt2": "openai-community/gpt2",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "bert-base-multilingual-cased": "google-bert/bert-base-multilingual-cased",
    "t5-small": "google-t5/t5-small",
    "roberta-base": "FacebookAI/roberta-base",
}


def test_full_name_knows_old_names_of_each_kind():
    assert {name: full_name(name, "dataset") for name in KNOWN} == KNOWN
    assert {name: full_name(name, "model") for name in KNOWN_MODELS} == KNOWN_MODELS
    assert full_name("SQuAD", "dataset") == "rajpurkar/squad"
    for name, what in (
        ("gpt2", "dataset"),
        ("squad", "model"),
        ("rajpurkar/squad", "dataset"),
        ("", "model"),
        ("x", "model"),
    ):
        assert full_name(name, what) is None
    for table in (_DATASETS, _MODELS):
        names = [name for each in table.values() for name in each.split()]
        assert len(set(names)) == len(names)
        assert names == [name.lower() for name in names]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'x' on the Hub"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub"),
        ValueError("invalid name"),
        FileNotFoundError("no such thing"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("name", ["squad", "gsm8k", "mine"])
def test_load_splits_names_the_namespace_of_an_old_name(monkeypatch, error, name):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        open_sources(DataConfig(dataset_name=name))
    assert (messages.WRITE_NAME.format(name=KNOWN.get(name)) in str(caught.value)) == (name in KNOWN)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "error", [OSError("gpt2 is not a valid model identifier"), ValueError("odd"), ConnectionError("offline")]
)
@pytest.mark.parametrize("name", ["gpt2", "t5-small", "mine"])
def test_loading_errors_name_the_namespace_of_an_old_name(error, name):
    with pytest.raises(ModelError) as caught, readable_loading_errors("model", name):
        raise error
    assert (messages.WRITE_NAME.format(name=KNOWN_MODELS.get(name)) in str(caught.value)) == (name in KNOWN_MODELS)


def test_init_names_the_namespace_of_an_old_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = messages.pattern(messages.NO_FILE_OR_FOLDER, path="squad")
    write = messages.pattern(messages.WRITE_NAME, name="rajpurkar/squad")
    with pytest.raises(DataError, match=f"{found}.* {write}"):
        inspect_data("squad", None)
