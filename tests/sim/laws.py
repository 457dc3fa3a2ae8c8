"""The laws of the log (docs/laws.md), each with its tests and the simulated faults that strain it.

Law 11's purging and law 12's comparing are done by readers; their tests are with the adapters.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct


class Law(Struct, frozen=True):
    """A law, the tests that stand for it (`module::function`), and the faults of the simulation that strain it."""

    name: str
    faults: tuple[str, ...]
    tests: tuple[str, ...]


LAWS: Final[dict[int, Law]] = {
    1: Law(
        "Stored is not accepted",
        ("lose_receipts", "two_leaders"),
        (
            "tests.sim.test_teeth::test_a_broken_rule_is_noticed",
            "tests.sim.test_laws::test_a_client_is_told_only_what_the_fold_accepted",
            "tests.sim.test_laws::test_an_assignment_that_the_fold_refuses_starts_nothing",
            "tests.sim.test_laws::test_the_overlay_of_a_void_commit_is_dropped_and_decided_again",
        ),
    ),
    2: Law(
        "Commits are numbered per writer",
        ("repeat_appends", "slow_log", "short_horizon"),
        (
            "tests.core.test_commits::test_any_order_and_repetition_within_the_window_counts_each_once",
            "tests.core.test_commits::test_what_never_came_is_a_gap_once_it_is_too_old_to_come",
            "tests.core.test_commits::test_an_idle_writer_is_forgotten_only_when_its_repeats_are_void",
            "tests.sim.test_laws::test_a_commit_repeated_long_after_changes_nothing",
            "tests.sim.test_laws::test_a_repeated_commit_of_the_leader_does_not_end_a_later_placement",
            "tests.sim.test_laws::test_a_commit_beyond_the_horizon_is_void",
        ),
    ),
    3: Law(
        "Authority is by writer and boot",
        ("garbage", "freeze_workers"),
        (
            "tests.core.test_evolve::test_a_report_counts_only_from_its_member_and_epoch_before_the_verdict",
            "tests.core.test_evolve::test_a_child_takes_everything_but_its_input_from_the_folded_parent",
            "tests.core.test_evolve::test_nobody_joins_in_anothers_name",
            "tests.sim.test_laws::test_a_zombie_of_an_earlier_boot_is_not_believed",
            "tests.sim.test_laws::test_one_process_cannot_report_for_anothers_node",
        ),
    ),
    4: Law(
        "Identity",
        ("short_memory", "intake"),
        (
            "tests.core.test_evolve::test_a_child_never_takes_over_a_task_of_its_id",
            "tests.sim.test_laws::test_a_finished_id_is_remembered_and_an_older_one_than_all_remembered_is_refused",
            "tests.sim.test_laws::test_an_id_from_the_future_cannot_bar_all_others",
            "tests.sim.test_laws::test_a_raw_submission_read_again_after_a_change_of_leaders_is_one_task",
            "tests.sim.test_laws::test_a_raw_submission_whose_event_the_fold_refused_is_not_settled_as_done",
            "tests.sim.test_laws::test_progress_in_the_intake_survives_a_settled_event_that_was_not_stored",
        ),
    ),
    5: Law(
        "Obligations",
        ("crash_leaders", "full_log"),
        (
            "tests.core.test_evolve::test_settled_discharges_what_was_told_and_never_goes_back",
            "tests.sim.test_laws::test_a_new_leader_owes_every_outcome_that_was_not_told",
            "tests.sim.test_laws::test_a_new_leader_tells_running_parents_of_their_children",
            "tests.sim.test_laws::test_what_time_made_necessary_comes_again_when_it_could_not_be_stored",
        ),
    ),
    6: Law(
        "Dispatch",
        ("drop_messages", "repeat_messages", "slow_messages"),
        (
            "tests.core.test_link::test_items_arrive_exactly_once_in_order",
            "tests.core.test_link::test_a_new_term_begins_anew_and_an_old_leader_is_not_heard",
            "tests.core.test_link::test_batches_fit_into_a_message_and_a_large_item_travels_alone",
            "tests.core.test_evolve::test_the_first_event_of_a_step_key_counts",
            "tests.sim.test_laws::test_an_undelivered_attempt_is_never_sent_again_under_its_epoch",
            "tests.sim.test_laws::test_what_is_on_its_way_is_not_missing",
            "tests.sim.test_laws::test_a_list_that_is_older_than_what_is_known_is_not_believed",
            "tests.sim.test_laws::test_a_list_lost_on_its_way_is_asked_for_again",
            "tests.sim.test_laws::test_a_process_that_counts_otherwise_for_long_is_asked_for_a_list",
        ),
    ),
    7: Law(
        "Epochs",
        ("crash_workers",),
        (
            "tests.core.test_evolve::test_an_assignment_starts_an_attempt_with_the_journal_so_far",
            "tests.core.test_evolve::test_a_hedged_attempt_ends_with_the_first_result",
            "tests.sim.test_laws::test_a_new_attempt_starts_from_what_was_accepted_of_its_predecessor",
        ),
    ),
    8: Law(
        "Waits",
        ("drain_workers", "crash_leaders"),
        (
            "tests.core.test_evolve::test_the_last_child_wakes_a_suspended_parent",
            "tests.core.test_evolve::test_a_redriven_parent_does_not_wait_for_children_that_ended_with_it",
            "tests.core.test_fold_properties::test_what_holds_of_any_log",
            "tests.core.test_wait_facts::test_suspended_with_a_resolved_group_goes_straight_to_the_queue",
            "tests.core.test_wait_facts::test_a_wait_is_resolved_while_its_task_is_between_two_attempts",
            "tests.core.test_wait_facts::test_the_first_result_of_a_wait_holds",
            "tests.core.test_wait_facts::test_what_an_ended_task_waited_for_is_in_no_index_and_comes_back_with_it",
            "tests.core.test_wait_facts::test_an_earlier_event_counts_only_for_those_who_say_so",
            "tests.core.test_wait_facts::test_a_message_is_sent_once_whatever_branches_send_it",
            "tests.core.test_leader_waits::test_of_two_answers_the_first_counts_and_the_second_is_told_so",
            "tests.core.test_leader_waits::test_a_new_leader_ends_the_waits_of_the_old_one_and_tells_what_may_not_have_been_told",
            "tests.sim.test_laws::test_suspended_with_an_already_resolved_wait_goes_straight_to_the_queue",
            "tests.sim.test_laws::test_cancelling_a_parent_reaches_its_running_children",
        ),
    ),
    9: Law(
        "Time",
        ("freeze_leaders",),
        (
            "tests.core.test_fold_properties::test_what_holds_of_any_log",
            "tests.sim.test_laws::test_a_deadline_passes_when_the_leader_says_so_and_not_by_anyones_clock",
            "tests.sim.test_laws::test_a_redriven_task_is_not_expired_by_its_old_timer",
            "tests.core.test_leader_waits::test_the_end_of_a_wait_that_could_not_be_stored_comes_again",
            "tests.core.test_schedules::test_a_slot_fires_once_and_none_before_the_last",
            "tests.core.test_schedules::test_a_new_leader_fires_what_the_old_one_had_not_and_nothing_twice",
            "tests.core.test_schedules::test_a_firing_that_could_not_be_stored_comes_again",
        ),
    ),
    10: Law(
        "Leadership",
        ("two_leaders", "crash_leaders", "freeze_leaders"),
        (
            "tests.core.test_evolve::test_another_writer_of_the_same_term_is_not_the_leader",
            "tests.sim.test_laws::test_of_two_candidates_the_first_stored_wins_the_term",
            "tests.sim.test_laws::test_a_new_leader_waits_a_full_lease_before_it_declares_anyone_lost",
            "tests.sim.test_laws::test_after_the_broker_came_back_everyone_has_a_full_lease",
            "tests.sim.test_laws::test_a_process_that_was_declared_lost_is_asked_to_join_again_and_what_it_lists_is_stopped",
            "tests.sim.test_laws::test_an_overlay_of_an_earlier_office_does_not_end_a_later_one",
        ),
    ),
    11: Law(
        "Trimming: a reader may start from a snapshot and its tail",
        ("crash_leaders",),
        (
            "tests.core.test_fold_properties::test_what_holds_of_any_log",
            "tests.core.test_codec::test_a_snapshot_is_refused_when_damaged_or_of_another_fold",
        ),
    ),
    12: Law(
        "Rewind",
        ("broker_outages", "garbage"),
        (
            "tests.core.test_fold_properties::test_garbage_between_events_changes_nothing_but_the_count",
            "tests.sim.test_laws::test_the_fold_remembers_what_is_stored_at_its_sequence_even_if_that_is_garbage",
        ),
    ),
    13: Law(
        "Hive",
        ("restart_delegate", "busy_children"),
        (
            "tests.core.test_evolve::test_a_child_swarm_keeps_its_attempts_under_a_new_delegate",
            "tests.sim.test_laws::test_a_restarted_delegate_is_handed_the_same_epochs",
            "tests.sim.test_laws::test_a_child_that_is_cut_off_keeps_its_work",
            "tests.sim.test_laws::test_an_old_delegate_neither_takes_the_child_back_nor_stops_its_work",
            "tests.sim.test_laws::test_a_delegated_task_is_returned_by_its_epoch",
            "tests.core.test_sharing::test_the_fold_gives_up_only_what_nobody_has_begun",
            "tests.core.test_sharing::test_what_waits_in_a_child_is_recalled_for_as_many_slots_as_are_free_elsewhere",
            "tests.core.test_sharing::test_of_two_delegates_that_live_the_one_that_was_replaced_is_told",
        ),
    ),
    14: Law(
        "Clients",
        ("cut_off", "drop_messages"),
        (
            "tests.core.test_commands::test_equal_wishes_have_equal_digests_and_others_do_not",
            "tests.sim.test_laws::test_the_same_id_asked_twice_is_one_task_and_both_are_answered",
            "tests.sim.test_laws::test_a_leader_that_resigns_tells_everyone_to_ask_again",
            "tests.sim.test_laws::test_a_result_is_answered_while_it_runs_when_it_ends_and_after",
            "tests.sim.test_laws::test_a_full_swarm_says_so_and_running_work_goes_on",
        ),
    ),
    15: Law(
        "Budgets",
        ("crash_workers", "two_leaders", "crash_leaders", "drain_workers", "lose_receipts"),
        (
            "tests.core.test_budgets::test_under_any_log_nothing_is_promised_twice_and_every_end_releases",
            "tests.core.test_budgets::test_attempts_side_by_side_never_overshoot_together",
            "tests.core.test_budgets::test_the_next_leader_answers_what_the_last_one_left_open",
            "tests.core.test_budgets::test_when_all_wait_for_each_other_the_youngest_wish_is_refused",
            "tests.sim.test_laws::test_each_attempt_is_granted_what_is_left",
            "tests.sim.test_laws::test_a_negative_bill_gives_nothing_back",
        ),
    ),
}
