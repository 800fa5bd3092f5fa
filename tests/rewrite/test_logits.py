"""Binary cross entropy on logits against that on probabilities: the same loss, but for the last bits of float32.

Both forms are float32, AMP is off. At the first step they agree to 1e-6; measured: 2.4e-7. Later losses do, too, unless
training amplifies last bits, as GANs may whose small weights batch norm blows up: with the second seed, 8 steps
make 1e-4 of them, and 6e-4 of one weight that is moved by a single unit in its last place, which nobody would call
another script. (With a DCGAN of 64 x 64: 2.6e-3 and 6.3e-3, and either form is 1e-2 from float64.) So what is asserted
of later steps is that the forms are no further apart than such units make them.
"""

from __future__ import annotations

import pytest

from tests.rewrite.fixing import amplint, put

pytestmark = pytest.mark.usefixtures("own_folder")

SCRIPT = """\
import torch
from torch import nn


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2),
            nn.Conv2d(16, 32, 4, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 1, 4, 1, 0, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return self.net(x).view(-1)


torch.set_num_threads(1)
torch.manual_seed(SEED)
maker = nn.Sequential(
    nn.ConvTranspose2d(16, 32, 4, 1, 0, bias=False),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.ConvTranspose2d(16, 3, 4, 2, 1),
    nn.Tanh(),
)
critic = Critic()
for layer in (*maker.modules(), *critic.modules()):
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
criterion = nn.BCELoss()
maker_opt = torch.optim.Adam(maker.parameters(), lr=1e-3, betas=(0.5, 0.999))
critic_opt = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.999))
for step in range(8):
    real, noise = torch.randn(16, 3, 16, 16), torch.randn(16, 16, 1, 1)
    ones, zeros = torch.ones(16), torch.zeros(16)
    critic_opt.zero_grad()
    fake = maker(noise)
    real_loss = criterion(critic(real), ones)
    fake_loss = criterion(critic(fake.detach()), zeros)
    critic_loss = real_loss + fake_loss
    critic_loss.backward()
    critic_opt.step()

    maker_opt.zero_grad()
    maker_loss = criterion(critic(fake), ones)
    maker_loss.backward()
    maker_opt.step()
    losses.append((critic_loss.item(), maker_loss.item()))
"""
NEXT = """\
with torch.no_grad():
    weights = critic.net[0].weight.view(-1)
    weights[WHICH] = torch.nextafter(weights[WHICH], torch.tensor(9.0))
criterion ="""


def losses(script: str, seed: int) -> list[tuple[float, float]]:
    names: dict[str, list[tuple[float, float]]] = {"losses": []}
    exec(compile(script.replace("SEED", str(seed)), "train.py", "exec"), names)  # the test's own script
    return names["losses"]


def apart(one: list[tuple[float, float]], other: list[tuple[float, float]]) -> list[float]:
    """How far two runs have been apart up to each step."""
    differences = [max(abs(a - b) for a, b in zip(*both, strict=True)) for both in zip(one, other, strict=True)]
    return [max(differences[: step + 1]) for step in range(len(differences))]


@pytest.mark.slow
def test_on_logits_it_is_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = put(SCRIPT)
    assert amplint("train.py").exit_code == 0
    logits = path.read_text(encoding="utf-8")
    assert "nn.BCEWithLogitsLoss()" in logits
    assert "Sigmoid" not in logits
    for seed in range(2):
        plain = losses(SCRIPT, seed)
        between = apart(plain, losses(logits, seed))
        units = [
            apart(plain, losses(SCRIPT.replace("criterion =", NEXT.replace("WHICH", str(which)), 1), seed))
            for which in (0, 100, 200)
        ]
        assert between[0] < 1e-6
        assert all(made < max(1e-6, 3 * max(one)) for made, *one in zip(between, *units, strict=True))
