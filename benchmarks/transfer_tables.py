def show(work, seeds):
    pass
