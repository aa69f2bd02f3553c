"""Command lines that several tests give. Knows: how a fit is asked for. Does not know: any fixture."""


def fitting(model, text, folder, *more):
    return ["fit", "-m", model, "-d", text, "--tokens", "2k", "--recipe", "ridge", "-o", str(folder), *more]
