"""Operations that models are made of: convolutions fast in compiled loops, and which platform they are traced for."""
