def plan() -> None:
    pass
