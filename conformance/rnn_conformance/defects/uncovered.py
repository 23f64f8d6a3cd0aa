"""Laws that no planted defect names, each with the reason: a list that may only become shorter."""

_LANE = (
    "a lane of compiled code, newer than the table: its defect is still due, planted where the lane's process sees it"
)

UNCOVERED: dict[str, str] = {
    "any_long_story_agrees_with_the_model": "any_story_agrees_with_the_model over longer stories: minutes a defect",
    "output_is_dense_and_plain": "memory that overlaps itself holds equal values, which drawn numbers never are; what "
    "torch calls expanded raises when it is written to, and a crash is no kill",
    "a_compiled_result_outlives_the_next_call": _LANE,
    "inductor_in_one_graph": _LANE,
    "compiled_with_graph_breaks": _LANE,
    "exported_saved_and_loaded": _LANE,
    "a_script_keeps_training_and_dropout": _LANE,
    "a_compiled_module_follows_its_mode": _LANE,
}
