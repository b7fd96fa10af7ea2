"The live view in a real kernel: its button is heard while the cell runs, and no other message is lost."
import os
import time
from contextlib import contextmanager
from queue import Empty

import pytest

pytest.importorskip('ipykernel')
pytest.importorskip('ipywidgets')
from jupyter_client.manager import start_new_kernel

SETUP = '''
import time
from pathlib import Path
from types import SimpleNamespace
from seqlit.show.live import live
from seqlit.train.events import Saved, Stopped, Update, Validated
from seqlit.train.trainer import Trainer

class Slow:
    "Yields a trainer's events, a hundred in a second, and takes Ctrl-C as a trainer does."
    asked, interruptible = None, Trainer.interruptible
    cfg = SimpleNamespace(optimization=SimpleNamespace(max_update=3000, max_epoch=0))
    def stop(self, reason='stopped'): self.asked = reason
    def run(self):
        for n in range(1, self.cfg.optimization.max_update + 1):
            with self.interruptible(): time.sleep(0.01)
            yield Update(1, n, dict(loss=100 / n, lr=0.1, wpb=50.), n, 3000)
            if self.asked: break
        yield Validated(1, n, 'valid', dict(loss=1.5))
        yield Saved(1, n, [Path('checkpoint_last.pt')])
        yield Stopped(1, n, self.asked or 'max_update')
'''


@contextmanager
def kernel(root):
    "A kernel and its client, as a front end has them."
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    manager, client = start_new_kernel(startup_timeout=120, env=os.environ | {'PYTHONPATH': paths})
    try: yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


class Reader:
    "What a kernel publishes, kept for those who ask later."
    def __init__(self, client): self.client, self.seen = client, []

    def until(self, found, seconds=90):
        "Read messages until one of them is what is looked for."
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            try: message = self.client.get_iopub_msg(timeout=1)
            except Empty: continue
            self.seen.append(message)
            if found(message): return message
        pytest.fail(f'not seen within {seconds} s; the last messages were '
                    + '\n'.join(str(m['content'])[:300] for m in self.seen[-5:]), pytrace=False)

    def of(self, cell, *kinds):
        "The content of a cell's messages of these kinds."
        return [m['content'] for m in self.seen if m['parent_header'].get('msg_id') == cell and m['msg_type'] in kinds]

    def text(self, cell): return ''.join(content['text'] for content in self.of(cell, 'stream'))

    def run(self, code, **how):
        "Run a cell to its end; returns its id."
        cell = self.client.execute(code, **how)
        self.until(ends(cell))
        errors = self.of(cell, 'error')
        assert not errors, '\n'.join(errors[0]['traceback'])
        return cell


def ends(cell):
    return lambda m: m['msg_type'] == 'status' and m['content']['execution_state'] == 'idle' and m['parent_header'].get('msg_id') == cell


def is_button(message):
    state = message['content'].get('data', {}).get('state', {})
    return message['msg_type'] == 'comm_open' and state.get('_model_name') == 'ButtonModel'


def is_picture(message):
    "Whether a message brings the curve into the widget: then the run is under way."
    return message['msg_type'] == 'comm_msg' and ['value'] in message['content']['data'].get('buffer_paths', [])


def test_the_button_stops_a_running_cell(root):
    with kernel(root) as (manager, client):
        reader = Reader(client)
        reader.run(SETUP)
        began = time.monotonic()
        training = client.execute('history = live(Slow())', allow_stdin=True)
        button = reader.until(is_button)['content']['comm_id']
        reader.until(is_picture)
        after = client.execute('print("after", history.ended, len(history.updates) < 2000)')
        click = client.session.msg('comm_msg', {'comm_id': button, 'data': {'method': 'custom', 'content': {'event': 'click'}}})
        client.shell_channel.send(click)
        reader.until(ends(after))
        assert time.monotonic() - began < 25, 'the run went to its end'
        assert 'the end (stopped); saved checkpoint_last.pt' in reader.text(training)
        assert reader.text(after) == 'after stopped True\n'
        shown, = reader.of(training, 'display_data')
        kept = reader.of(training, 'update_display_data')[-1]
        assert 'application/vnd.jupyter.widget-view+json' in shown['data']
        assert kept['transient'] == shown['transient']
        assert 'image/png' in kept['data'] and 'application/vnd.jupyter.widget-view+json' not in kept['data']


def test_interrupting_the_kernel_stops_the_run(root):
    with kernel(root) as (manager, client):
        reader = Reader(client)
        reader.run(SETUP)
        training = client.execute('history = live(Slow())', allow_stdin=True)
        reader.until(is_picture)
        manager.interrupt_kernel()
        reader.until(ends(training))
        assert not reader.of(training, 'error')
        assert 'the end (interrupted); saved checkpoint_last.pt' in reader.text(training)


def test_lines_and_a_still_picture_where_nobody_watches(root):
    with kernel(root) as (manager, client):
        reader = Reader(client)
        reader.run(SETUP + '\nSlow.cfg.optimization.max_update = 50')
        training = reader.run('history = live(Slow())', allow_stdin=False)
        assert reader.text(training) == ('epoch 1, update 50: loss 1.500 on valid\n'
                                         'epoch 1, update 50: the end (max_update)\n')
        shown, = reader.of(training, 'display_data')
        assert set(shown['data']) == {'image/png', 'text/plain'}


def test_a_script_prints_lines_only(root, tmp_path):
    import subprocess, sys
    script = tmp_path/'script.py'
    script.write_text(SETUP + '\nSlow.cfg.optimization.max_update = 20\nlive(Slow())\nimport sys\n'
                      'assert "ipywidgets" not in sys.modules and "matplotlib" not in sys.modules\n', encoding='utf-8')
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {'PYTHONPATH': str(root)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == 'epoch 1, update 20: the end (max_update)'
