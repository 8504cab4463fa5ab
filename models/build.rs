//! Takes the rooms of the ledger as they are released, and writes them out: once as they are, and once for each seeded bug.
//! Their locks and atomics are those of a module that is another one here, and has loom's.
//!
//! A text that is to be replaced must be there exactly once, so that neither the models nor the bugs can go stale.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

/// The ledger and what stands in it.
const ROOMS: &[&str] = &["idle_waits.rs", "ledger.rs", "line.rs", "room_queue.rs", "waiters.rs"];

/// The bugs by name, each a few replacements.
const SEEDS: &[(&str, &[(&str, &str)])] = &[
    (
        "leave_wakes_nobody",
        &[(
            "        if is_empty {\n            self.ledger.waiters.wake_all();\n        }\n        if !idle",
            "        let _ = is_empty;\n        if !idle",
        )],
    ),
    (
        "leave_asks_for_waiters_before_it_locks",
        &[
            (
                "    any: AtomicBool,\n    list: Mutex<WaiterList>,",
                "    pub(crate) any: AtomicBool,\n    list: Mutex<WaiterList>,",
            ),
            (
                "    fn leave(self: &Arc<Self>, key: u32, ending: Ending) {\n        let mut left = Left::default();\n        \
                 self.remove(&mut self.lock(), key, ending, &mut left);\n",
                "    fn leave(self: &Arc<Self>, key: u32, ending: Ending) {\n        \
                 let any_waits = self.ledger.waiters.any.load(Ordering::Relaxed);\n        \
                 let mut left = Left::default();\n        \
                 self.remove(&mut self.lock(), key, ending, &mut left);\n        left.is_empty &= any_waits;\n",
            ),
        ],
    ),
    (
        "close_does_not_look_for_entries",
        &[("now.shards.iter().any(|state| !state.slots.is_empty())", "now.shards.iter().any(|_| false)")],
    ),
    (
        "close_does_not_look_at_lanes",
        &[("now.lanes.iter().any(|lane| !lane.is_empty())", "now.lanes.iter().any(|_| false)")],
    ),
    (
        "close_leaves_a_lane_open",
        &[(
            "                lane.gate_mut().close(Refused::Drained);\n            }\n            closed_lanes",
            "                \
             let _ = lane;\n            }\n            closed_lanes",
        )],
    ),
    (
        "empty_lane_wakes_nobody",
        &[(
            "    pub(crate) fn lane_left(&self, reached: Vec<Waker>, is_empty: bool) {\n        if is_empty {\n",
            "    pub(crate) fn lane_left(&self, reached: Vec<Waker>, is_empty: bool) {\n        if false {\n            let _ = is_empty;\n",
        )],
    ),
    (
        "lanes_are_counted_before_the_shards",
        &[(
            "    pub(crate) fn snapshot(&self) -> Snapshot {\n        self.at_one_instant(|now| now.count())\n",
            "    pub(crate) fn snapshot(&self) -> Snapshot {\n        let pending: u64 = lock(&self.lanes).open.iter()\
                 .map(|lane| lane.lock().pending()).sum();\n        self.at_one_instant(|now| { let mut count = now.count(); \
                 count.pending = now.shards.iter().map(|state| state.pending).sum::<u64>() + pending; count })\n",
        )],
    ),
    (
        "lane_reaches_no_wait",
        &[(
            "        left.reached.iter().filter_map(|id| waits.lane_reached(*id)).collect()\n",
            "        let _ = &mut waits;\n        Vec::new()\n",
        )],
    ),
    (
        "close_looks_at_one_shard_after_the_other",
        &[
            (
                "        let mut closed_lanes = None;\n",
                "        let mut closed_lanes = None;\n        \
                 let is_busy = self.shards.iter().any(|shard| !shard.lock().slots.is_empty());\n",
            ),
            ("now.shards.iter().any(|state| !state.slots.is_empty())", "is_busy"),
        ],
    ),
    (
        "close_leaves_a_shard_open",
        &[(
            "            for state in &mut now.shards {\n",
            "            for state in now.shards.iter_mut().take(1) {\n",
        )],
    ),
    (
        "close_wakes_nobody",
        &[("            // The other drains end with this one.\n            self.waiters.wake_all();\n", "")],
    ),
    (
        "ending_is_counted_after_the_lock",
        &[
            ("            state.endings.count(ending);\n            if ending", "            if ending"),
            (
                "        self.remove(&mut self.lock(), key, ending, &mut left);\n        self.finish(left);\n",
                "        self.remove(&mut self.lock(), key, ending, &mut left);\n        \
                 self.lock().endings.count(ending);\n        self.finish(left);\n",
            ),
        ],
    ),
    (
        "room_is_given_twice",
        &[(
            "self.pool.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)",
            "{ let pool = self.pool.load(Ordering::Relaxed); take(pool)\
             .map(|left| { self.pool.store(left, Ordering::Relaxed); pool }).ok_or(pool) }",
        )],
    ),
    (
        "verdict_is_full_under_one_lock",
        &[(
            "            drop(state);\n            state = self.admit_with_all_room(kind)?;\n",
            "            return Err(state.refuse(kind, Refused::Full));\n",
        )],
    ),
    (
        "abort_is_said_after_its_locks",
        &[
            ("            self.aborted_before.store(era, Ordering::Relaxed);\n", ""),
            ("let (wakers, recorded, lanes) = self.at_one", "let (wakers, recorded, lanes, era) = self.at_one"),
            (
                "            (wakers, recorded, now.list.open.clone())\n",
                "            (wakers, recorded, now.list.open.clone(), era)\n",
            ),
            (
                "        wake(wakers);\n        for event in recorded",
                "        self.aborted_before.store(era, Ordering::Relaxed);\n        wake(wakers);\n        for event in recorded",
            ),
        ],
    ),
    (
        "hold_asks_before_it_locks",
        &[
            (
                "        let waker = waker.clone();\n        let mut state = self.0.shard.lock();\n",
                "        let waker = waker.clone();\n        let may_hold = !self.is_aborted();\n        \
                 let mut state = self.0.shard.lock();\n",
            ),
            ("        let may_hold = !self.is_aborted();\n        let mut unused", "        let mut unused"),
        ],
    ),
    (
        "wait_begins_after_its_locks",
        &[
            (
                "                let before = next_era(&mut now.shards);\n                \
                 let in_shards: u64 = now.shards.iter().map(|state| state.pending).sum();\n",
                "",
            ),
            (
                "    pub(crate) fn begin(ledger: &Arc<Ledger<C>>) -> Self {\n",
                "    pub(crate) fn begin(ledger: &Arc<Ledger<C>>) -> Self {\n        \
                 let (before, in_shards) = ledger.at_one_instant(|now| {\n            \
                 let before = next_era(&mut now.shards);\n            \
                 (before, now.shards.iter().map(|state| state.pending).sum::<u64>())\n        });\n",
            ),
        ],
    ),
    (
        "wait_is_for_later_events_too",
        &[
            ("            if era != state.era {\n", "            {\n"),
            ("wait.before > era", "true"),
            ("self.remaining -= 1;", "self.remaining = self.remaining.saturating_sub(1);"),
        ],
    ),
    (
        "queue_is_entered_without_locks",
        &[(
            "        let (number, place) = self.ledger.room_queue.push(entry);\n",
            "        drop(shards);\n        let (number, place) = self.ledger.room_queue.push(entry);\n",
        )],
    ),
    (
        "queue_is_served_after_the_lock",
        &[
            (
                "            left.granted = ledger.room_queue.pop(|permit| state.enter(permit, Holder::Nothing).0);\n            \
                 if left.granted.is_none() {\n                left.has_room_again = ledger.give_room(state);\n            }\n",
                "            left.has_room_again = ledger.give_room(state);\n",
            ),
            (
                "    fn leave(self: &Arc<Self>, key: u32, ending: Ending) {\n        let mut left = Left::default();\n        \
                 self.remove(&mut self.lock(), key, ending, &mut left);\n",
                "    fn leave(self: &Arc<Self>, key: u32, ending: Ending) {\n        let mut left = Left::default();\n        \
                 self.remove(&mut self.lock(), key, ending, &mut left);\n        \
                 let mut state = self.lock();\n        if self.ledger.take_room(&mut state) {\n            \
                 left.granted = self.ledger.room_queue.pop(|permit| state.enter(permit, Holder::Nothing).0);\n            \
                 if left.granted.is_none() {\n                self.ledger.give_room(&mut state);\n            }\n        \
                 }\n        drop(state);\n",
            ),
        ],
    ),
    ("last_in_the_queue_is_first", &[("places.waiting.pop_first()", "places.waiting.pop_last()")]),
    (
        "grant_to_one_who_left_is_forgotten",
        &[(
            "RoomState::Granted(_) | RoomState::Left => Some(permit),",
            "RoomState::Granted(_) | RoomState::Left => { mem::forget(permit); None }",
        )],
    ),
    (
        "grant_that_was_not_taken_is_forgotten",
        &[(
            "        // A permit that was granted and not taken gives its room to the next.\n        \
             let _ = contain(|| drop(left));\n",
            "        mem::forget(left);\n",
        )],
    ),
    (
        "poll_forgets_who_polls_again",
        &[("                mem::swap(&mut waker, &mut new);\n                *state", "                *state")],
    ),
    (
        "abort_forgets_what_is_recorded",
        &[
            (
                "                    Holder::Recorded { event, next: _ } => recorded.push(event),\n                    \
                 Holder::Request { .. } | Holder::Nothing => {}\n                    \
                 Holder::Fresh => *holder = Holder::Fresh,\n",
                "                    unheld => *holder = unheld,\n",
            ),
            (
                "            let (mut wakers, mut recorded) = (Vec::new(), Vec::new());\n",
                "            let (mut wakers, recorded) = (Vec::new(), Vec::<C::Starting>::new());\n",
            ),
        ],
    ),
    (
        "recorded_after_an_abort_is_kept",
        &[("request.filter(|_| !self.ledger.is_aborted(id.era) && !is_over())", "request.filter(|_| !is_over())")],
    ),
    (
        "given_up_drain_leaves_its_waker",
        &[(
            "        if !self.any.load(Ordering::Relaxed) {\n            return;\n        }\n        \
             let mut list = self.lock();\n        let left",
            "        if self.any.load(Ordering::Relaxed) {\n            return;\n        }\n        \
             let mut list = self.lock();\n        let left",
        )],
    ),
    (
        "given_up_drain_says_that_nobody_waits",
        &[("self.any.store(!list.wakers.is_empty(), Ordering::Relaxed);", "self.any.store(false, Ordering::Relaxed);")],
    ),
    (
        "arrival_sends_nobody",
        &[("        Arrival { event, due: self.due() }\n", "        self.due();\n        Arrival { event, due: 0 }\n")],
    ),
    (
        "leave_sends_nobody",
        &[(
            "        self.coming -= 1;\n        self.due()\n",
            "        self.coming -= 1;\n        self.due();\n        0\n",
        )],
    ),
    ("last_drop_leaves_the_line", &[("if self.coming == 0 {", "if false {")]),
    (
        "end_and_take_wakes_nobody",
        &[(
            "        shard.remove(&mut state, mem::replace(key, GONE), *ending, &mut left);\n        if !left",
            "        shard.remove(&mut state, mem::replace(key, GONE), *ending, &mut left);\n        \
                 left.is_empty = false;\n        if !left",
        )],
    ),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut rooms = Vec::new();
    for name in ROOMS {
        let path = format!("../src/{name}");
        println!("cargo::rerun-if-changed={path}");
        let source = fs::read_to_string(path)?;
        // What is included cannot begin with the documentation of a module.
        let source: String = source.split_inclusive('\n').filter(|line| !line.starts_with("//!")).collect();
        // The other rooms are beside it, and not at the root.
        rooms.push((*name, source.replace("use crate::", "use super::")));
    }
    write(&out, "released", &rooms)?;
    for (name, replacements) in SEEDS {
        let mut rooms = rooms.clone();
        replace(&mut rooms, name, replacements)?;
        write(&out, name, &rooms)?;
    }
    Ok(())
}

/// Each text that is replaced is there once, in one of the rooms.
fn replace(rooms: &mut [(&str, String)], name: &str, replacements: &[(&str, &str)]) -> Result<(), String> {
    for (old, new) in replacements {
        let count: usize = rooms.iter().map(|(_, text)| text.matches(old).count()).sum();
        if count != 1 {
            return Err(format!("{name}: this is {count} times in the ledger, and should be once:\n{old}"));
        }
        for (_, text) in rooms.iter_mut() {
            *text = text.replace(old, new);
        }
    }
    Ok(())
}

fn write(out: &Path, name: &str, rooms: &[(&str, String)]) -> Result<(), Box<dyn Error>> {
    let folder = out.join(name);
    fs::create_dir_all(&folder)?;
    for (room, text) in rooms {
        fs::write(folder.join(room), text)?;
    }
    Ok(())
}
