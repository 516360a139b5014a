"""How fast this machine is, for the times that commands estimate."""


def this_machine() -> float:
    """Training FLOP/s to expect of this machine, measured; importing torch for it takes seconds."""
    from rich.console import Console

    with Console(stderr=True).status("measuring how fast this machine is"):
        from kinfolk.train.engine import fastest_precision, single_engine
        from kinfolk.train.speed import TRAINING_SHARE, matmul_rate

        engine = single_engine()
        return TRAINING_SHARE * matmul_rate(engine, fastest_precision(engine.device))
