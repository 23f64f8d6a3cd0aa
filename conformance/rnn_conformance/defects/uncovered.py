"""Laws that no planted defect names, each with the reason: a list that may only become shorter."""

UNCOVERED: dict[str, str] = {
    "any_long_story_agrees_with_the_model": "any_story_agrees_with_the_model over longer stories: minutes a defect",
    "output_is_dense_and_plain": "memory that overlaps itself holds equal values, which drawn numbers never are; what "
    "torch calls expanded raises when it is written to, and a crash is no kill",
}
