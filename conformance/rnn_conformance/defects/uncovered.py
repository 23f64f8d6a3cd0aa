"""Laws that no planted defect names, each with the reason: a list that may only become shorter."""

UNCOVERED: dict[str, str] = {
    "any_long_program_agrees_with_the_model": "any_program_agrees_with_the_model with longer programs: minutes each",
    "output_is_dense_and_plain": "overlapping memory holds equal values, which drawn numbers never are; writing to a "
    "tensor that torch calls expanded raises, and a crash is no kill",
}
