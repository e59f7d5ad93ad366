"""What is a secret, and texts and values without them."""

from __future__ import annotations

import pytest

from sft.common.secrets import hide, hide_value, looks_secret, secrets_in_arguments, secrets_in_text, without_secrets

SECRET = "Xy7-s3cr3t"
KEY = "hf_" + "aB3" * 12


@pytest.mark.parametrize(
    "name",
    "hub_token push_to_hub_token HF_TOKEN hubToken accessToken hftoken token use_auth_token access_tokens api_key "
    "api-key WANDB_API_KEY wandb_key comet.api_key apikey password dbPassword PASSWD passphrase client_secret "
    "privateKey AWS_SECRET_ACCESS_KEY credentials HUGGING_FACE_HUB_TOKEN mytoken".split(),
)
def test_names_of_secrets(name):
    assert looks_secret(name)


@pytest.mark.parametrize(
    "name",
    "tokenizer tokenizer_name_or_path eos_token eos_token_id pad_token add_end_token max_new_tokens tokens_per_batch "
    "supervised_tokens num_input_tokens_seen token_type_ids image_token_id tokens key keys key_value "
    "num_key_value_heads monkey keyword secretary hub_model_id train_file".split(),
)
def test_names_of_other_things(name):
    assert not looks_secret(name)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--hub_token", SECRET],
        ["--hub_token", "other", SECRET],
        [f"--hub-token={SECRET}"],
        ["--hub_token=first", SECRET],
        ["-hub_token", SECRET],
        ["hub_token", SECRET],
        [f"hub_token={SECRET}"],
        [f"hub_token:{SECRET}"],
        ["--password", "my_secret_token", SECRET],
        ["--deepspeed.comet.api_key", SECRET],
        ["--deepspeed", f"{{comet: {{api_key: {SECRET}, x: 1}}}}"],
        ["--deepspeed", f'{{"comet": {{"api_key": "{SECRET}", "x": [}}'],
        ["--optim_args", f"a=1,api_key={SECRET}"],
    ],
)
def test_secrets_of_a_command_line(arguments):
    message = f"unexpected {arguments!r}: found {SECRET}, {SECRET!r}"
    assert SECRET not in hide(message, secrets_in_arguments([*arguments, "--seed", "3"]))
    assert "3" not in secrets_in_arguments([*arguments, "--seed", "3"])


@pytest.mark.parametrize(
    "text",
    [
        f"hub_token: {SECRET}  # mine",
        f"'hub_token' : \"{SECRET}\"",
        f"hub_token: *{SECRET}",
        f"hub_token: !{SECRET} x",
        f"hub_token:\n  {SECRET}\nseed: 3",
        f"hub_token: |\n    {SECRET}\n",
        f"tokens:\n- a\ndeepspeed:\n  comet:\n    api_key:\n      - {SECRET}",
        f"deepspeed: {{comet: {{api_key: {SECRET}}}}}",
        f"hub_token={SECRET}: 3",
    ],
)
def test_secrets_of_yaml_as_text(text):
    assert SECRET not in hide(f"not valid YAML: found undefined alias '{SECRET}'", secrets_in_text(text))


@pytest.mark.parametrize(
    "secret", ["it's\\x", "a\"b'c\\", "two\nlines", "tab\there", "x" * 200, "\x1b[31mred", "ä€ßöü"]
)
def test_a_secret_is_masked_in_every_form_that_messages_quote(secret):
    long = secret if len(secret) <= 60 else secret[:57] + "..."
    message = f"{secret} {secret!r} {' '.join(secret.split())} found {long!r}."
    hidden = hide(message, [secret])
    assert hidden.replace("***", "").replace("'", "").replace('"', "").split() in (["found", "."], ["found", "...."])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("git clone https://me:pw@host/x y", "git clone https://***@host/x y"),
        ("s3://key:p@ss@bucket/a", "s3://***@bucket/a"),
        ("https://me:p/w@host/x", "https://***@host/x"),
        ("https://me:p#w?x@host:80/x", "https://***@host:80/x"),
        ("https://me:p@s/w@host", "https://***@host"),
        ("https://host:80/a:b@c https://host:80", "https://host:80/a:b@c https://host:80"),
        ("me:pw@host:data/rows.jsonl is no file", "***@host:data/rows.jsonl is no file"),
        ("found 'me:p@w@[::1]:data'", "found '***@[::1]:data'"),
        ("(db-user:p/w%40@10.0.0.1:5432/db)", "(***@10.0.0.1:5432/db)"),
        ("run=me:pw@host, you=me:pw2@host", "run=***@host, you=***@host"),
        ("git@host:me/repo.git, rows.jsonl:3: me@host", "git@host:me/repo.git, rows.jsonl:3: me@host"),
        ("mailto:me@host, /data/run:3@home, org/model:tag@v1", "mailto:me@host, /data/run:3@home, org/model:tag@v1"),
        ("https://host/a?user=me&token=abc&x=1", "https://host/a?user=me&token=***&x=1"),
        ("no such file: 'https:/me:pw@host/x'", "no such file: 'https:/***@host/x'"),
        ("https://host/a?X-Amz-Signature=abc&x=1", "https://host/a?X-Amz-Signature=***&x=1"),
        ("unexpected argument 'hf_SecretToken'", "unexpected argument '***'"),
        ("/data/hf_checkpoints/hf_SMALL", "/data/hf_checkpoints/hf_SMALL"),
        ("https://host:80/a@b", "https://host:80/a@b"),
        (f"token {KEY} denied", "token *** denied"),
        ("Illegal header value b'Bearer abcdefgh\\n'", "Illegal header value b'Bearer ***\\n'"),
        ("{'Authorization': 'Basic dXNlcjpwdw=='}", "{'Authorization': 'Basic ***'}"),
        (
            "/data/hf_models/a_path_with_a_long_name_of_many_words",
            "/data/hf_models/a_path_with_a_long_name_of_many_words",
        ),
        ("5 tokens: the tokenizer's eos_token: </s>", "5 tokens: the tokenizer's eos_token: </s>"),
    ],
)
def test_secrets_that_show_by_their_form(text, shown):
    assert hide(text) == shown


def test_short_and_plain_values_do_not_mask_words():
    assert hide("hub_token: takes one value, found 2: true", ["true", "a", ""]) == (
        "hub_token: takes one value, found 2: true"
    )
    assert hide("line 5: found 'ab'", ["ab", "5"]) == "line 5: found '***'"


def test_values_of_records():
    value = {
        "comet": {"api_key": SECRET, "enabled": True, "keys": [SECRET, 1]},
        "tokens": 5,
        "list": [{"password": SECRET}, f"https://a:{SECRET}@host"],
        "use_auth_token": None,
        "token": False,
    }
    assert without_secrets(value) == {
        "comet": {"api_key": "***", "enabled": True, "keys": [SECRET, 1]},
        "tokens": 5,
        "list": [{"password": "***"}, "https://***@host"],
        "use_auth_token": None,
        "token": False,
    }
    assert hide_value(f"a=1,api_key={SECRET},b=2") == "a=1,api_key=***,b=2"
