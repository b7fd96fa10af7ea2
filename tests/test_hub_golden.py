"The hub finds what belongs to a model of fairseq's, and says what fairseq said with it."
import pytest
import torch

from seqlit.base.errors import SeqlitError
from seqlit.hub.hub import Hub
from test_generate_golden import by_sentence


@pytest.fixture(scope='module')
def hub(shared) -> Hub:
    return Hub.from_pretrained(shared/'golden'/'models'/'transformer', data=shared/'golden'/'preprocess'/'joined')


@pytest.fixture(scope='module')
def golden(shared) -> dict:
    return by_sentence((shared/'golden'/'generate'/'transformer.beam5.out').read_text(encoding='utf-8').splitlines())


def test_translates_as_fairseq(hub, golden):
    ids = [i for mark, i in golden if mark == 'S'][:40]
    sources = [golden['S', i][0][0] for i in ids]  # `<unk>` is a word of the dictionary
    assert hub.translate(sources) == [golden['D', i][0][1] for i in ids]
    found = hub.generate([hub.encode(source) for source in sources])
    for i, hypotheses in zip(ids, found):
        assert hypotheses[0].score / 0.6931471805599453 == pytest.approx(float(golden['H', i][0][0]), abs=2e-3)


def test_scores_pairs_as_they_were_found(hub, golden):
    ids = [i for mark, i in golden if mark == 'S'][:12]
    scored = hub.score([(golden['S', i][0][0], golden['H', i][0][1]) for i in ids], batch_size=5)
    for i, hypothesis in zip(ids, scored):
        steps = [float(x) for x in golden['P', i][0][0].split()]
        assert (hypothesis.positional_scores / 0.6931471805599453).tolist() == pytest.approx(steps, abs=2e-3)


def test_language_model(shared):
    "Scores do not depend on the batch, and are those of the model; samples go on from a beginning."
    golden = shared/'golden'
    hub = Hub.from_pretrained(golden/'models'/'transformer_lm'/'checkpoint_best.pt', data=golden/'preprocess'/'onlysrc')
    texts = ['a man in a blue shirt .', 'two dogs', 'a man in a']
    together = hub.score(texts)
    for text, hypothesis in zip(texts, together):
        alone, = hub.score([text])
        assert torch.allclose(alone.positional_scores, hypothesis.positional_scores, atol=1e-5)
        tokens = torch.tensor([[2, *hub.encode(text)[:-1].tolist()]])
        with torch.no_grad():
            scores = hub.models[0](tokens)[0].log_softmax(-1)[0]
        wanted = scores.gather(1, hub.encode(text)[:, None])[:, 0]
        assert torch.allclose(hypothesis.positional_scores, wanted, atol=1e-5)
    continued = hub.sample(texts, max_len_b=12)
    for text, output in zip(texts, continued):
        assert output.startswith(text)
        assert hub.sample(text, max_len_b=12) == output
    with pytest.raises(SeqlitError, match='scores sentences'):
        hub.score([('a', 'b')])


def test_what_is_missing_is_said(shared, tmp_path):
    path = shared/'golden'/'models'/'transformer'/'checkpoint_best.pt'
    with pytest.raises(SeqlitError, match='give the folder with data='):
        Hub.from_pretrained(path)
    with pytest.raises(SeqlitError, match=r'no model2.pt here.*checkpoint_best.pt'):
        Hub.from_pretrained(path.parent, 'model2.pt')
    with pytest.raises(SeqlitError, match='--bpe-codes FILE'):
        Hub.from_pretrained(path, data=shared/'golden'/'preprocess'/'joined', bpe='subword_nmt')
    (tmp_path/'bpecodes').write_text('#version: 0.2\ne r\n', encoding='utf-8')
    for file in (shared/'golden'/'preprocess'/'joined').glob('dict*.txt'):
        (tmp_path/file.name).write_bytes(file.read_bytes())
    (tmp_path/'model.pt').write_bytes(path.read_bytes())
    hub = Hub.from_pretrained(tmp_path, bpe='subword_nmt', source_lang='en', target_lang='de')
    assert hub.bpe.encode('er') == 'e@@ r'
