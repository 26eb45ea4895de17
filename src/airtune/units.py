"""Decibels live only at the borders (configuration, plots); everything inside is SI and linear."""


def db_to_linear(value_db: float) -> float:
    """Power ratio of a level in dB.

    >>> db_to_linear(30.0)
    1000.0
    """
    return 10.0 ** (value_db / 10.0)


def dbm_to_w(level_dbm: float) -> float:
    """Watts of a level in dBm.

    >>> dbm_to_w(30.0)
    1.0
    """
    return db_to_linear(level_dbm - 30.0)
