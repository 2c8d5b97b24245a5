"""Operations of networks: convolutions that are fast in compiled loops, and the platform of the traced program."""
