//! A batch that is being delivered: the pieces into which it was divided, and what follows an attempt.

use std::{collections::VecDeque, mem, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use crate::sink::{batch::Batch, error::Meaning};

/// Passes the ending of a value to its sender: delivered, or the error of the last attempt.
pub(super) type Ack = oneshot::Sender<Result<(), Option<String>>>;

/// The values of one attempt.
pub(super) struct Piece<E> {
    pub(super) batch: Batch<E>,
    /// The acknowledgements of values that are awaited, with the index of the value.
    pub(super) acks: Vec<(usize, Ack)>,
    attempts: u32,
    /// Its batch has had all of its attempts, and is halved to find the values that cannot be delivered.
    is_half: bool,
}

pub(super) struct Flight<E> {
    /// The number of its first value. The values of a sink are numbered in the order in which they were accepted.
    pub(super) first: u64,
    /// When its first value was sent, or earlier.
    pub(super) since: Instant,
    /// In order. The first is being attempted, or waits for its next attempt.
    pub(super) pieces: VecDeque<Piece<E>>,
    /// Values whose ending an attempt has decided have not ended yet.
    pub(super) is_ending: bool,
    halving: Option<Halving>,
}

/// Tells a store that fails from values that cannot be delivered.
struct Halving {
    failures_in_a_row: u32,
    /// One bad value takes one failure for each halving. After twice as many without a success, the store has failed.
    most: u32,
}

/// The result of an attempt.
pub(super) struct Attempted<E> {
    pub(super) taken: Vec<Piece<E>>,
    pub(super) undelivered: Vec<Piece<E>>,
    /// Whether the piece, or a part of it, will be attempted again.
    pub(super) is_retried: bool,
    pub(super) wait: Wait,
}

impl<E> Attempted<E> {
    fn new() -> Self {
        Self { taken: Vec::new(), undelivered: Vec::new(), is_retried: false, wait: Wait::No }
    }
}

/// How long the next attempt waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    No,
    Backoff,
    For(Duration),
}

impl<E> Piece<E> {
    pub(super) fn new(batch: Batch<E>, acks: Vec<(usize, Ack)>) -> Self {
        Self { batch, acks, attempts: 0, is_half: false }
    }

    fn halves(self, is_half: bool) -> [Self; 2] {
        let middle = self.batch.len() / 2;
        let (left, right): (Vec<_>, Vec<_>) = self.acks.into_iter().partition(|(index, _)| *index < middle);
        let right = right.into_iter().map(|(index, ack)| (index - middle, ack)).collect();
        let [first, second] = self.batch.halves();
        [(first, left), (second, right)].map(|(batch, acks)| Self { batch, acks, attempts: 0, is_half })
    }

    /// Returns the values with these indices, and the others.
    fn separate(self, indices: &[usize]) -> [Vec<Self>; 2] {
        let Self { batch, mut acks, attempts, is_half } = self;
        let separated = batch.separate(indices);
        [separated.named, separated.others].map(|parts| {
            let piece = |(indices, batch): (Vec<usize>, _)| {
                let place = |index: &usize| indices.binary_search(index);
                let (mine, others): (Vec<_>, _) =
                    mem::take(&mut acks).into_iter().partition(|(index, _)| place(index).is_ok());
                acks = others;
                let acks = mine.into_iter().map(|(index, ack)| (place(&index).unwrap_or(index), ack)).collect();
                Self { batch, acks, attempts, is_half }
            };
            parts.into_iter().map(piece).collect()
        })
    }
}

impl<E> Flight<E> {
    pub(super) fn new(first: u64, since: Instant, piece: Piece<E>) -> Self {
        Self { first, since, pieces: VecDeque::from([piece]), is_ending: false, halving: None }
    }

    /// Removes the first piece, which was delivered.
    pub(super) fn taken(&mut self) -> Attempted<E> {
        self.has_succeeded();
        Attempted { taken: self.pieces.pop_front().into_iter().collect(), ..Attempted::new() }
    }

    fn has_succeeded(&mut self) {
        if let Some(halving) = &mut self.halving {
            halving.failures_in_a_row = 0;
        }
    }

    /// Decides what happens to the first piece after a failed attempt.
    pub(super) fn failed(&mut self, meaning: Meaning, max_attempts: Option<u32>) -> Attempted<E> {
        let mut attempted = Attempted::new();
        let Some(piece) = self.pieces.pop_front() else { return attempted };
        let later = self.pieces.len();
        let len = piece.batch.len();
        let is_valid = |indices: &[usize]| indices.last().is_none_or(|last| *last < len);
        match meaning {
            Meaning::Split if len > 1 => {
                let is_half = piece.is_half;
                self.put_back(piece.halves(is_half));
            }
            Meaning::Permanent | Meaning::Split => attempted.undelivered.push(piece),
            Meaning::Rejected(indices) if is_valid(&indices) => {
                [attempted.undelivered, attempted.taken] = piece.separate(&indices);
            }
            Meaning::RetryWithout(indices) if is_valid(&indices) && !indices.is_empty() => {
                let others;
                [attempted.undelivered, others] = piece.separate(&indices);
                self.put_back(others);
            }
            Meaning::RetryOnly(indices) if is_valid(&indices) => {
                let named;
                [named, attempted.taken] = piece.separate(&indices);
                attempted.wait = Wait::Backoff;
                self.try_again(named, max_attempts, &mut attempted);
            }
            Meaning::RetryAfter(after) => {
                attempted.wait = Wait::For(after);
                self.try_again(vec![piece], max_attempts, &mut attempted);
            }
            Meaning::Retry | Meaning::Rejected(_) | Meaning::RetryWithout(_) | Meaning::RetryOnly(_) => {
                attempted.wait = Wait::Backoff;
                self.try_again(vec![piece], max_attempts, &mut attempted);
            }
        }
        if !attempted.taken.is_empty() {
            self.has_succeeded();
        }
        attempted.is_retried = self.pieces.len() > later;
        attempted
    }

    /// Puts pieces or their halves back after a failed attempt, or gives them up.
    fn try_again(&mut self, mut pieces: Vec<Piece<E>>, max_attempts: Option<u32>, attempted: &mut Attempted<E>) {
        let is_half = pieces.iter().any(|piece| piece.is_half);
        pieces.iter_mut().for_each(|piece| piece.attempts += 1);
        if !is_half && pieces.iter().all(|piece| max_attempts.is_none_or(|max| piece.attempts < max)) {
            return self.put_back(pieces);
        }
        // Halves and other pieces are attempted without a wait.
        attempted.wait = Wait::No;
        let len: usize = pieces.iter().map(|piece| piece.batch.len()).sum();
        let halving = self.halving.get_or_insert(Halving { failures_in_a_row: 0, most: u32::MAX });
        if is_half {
            halving.failures_in_a_row += u32::from(attempted.taken.is_empty());
        } else {
            *halving = Halving { failures_in_a_row: 0, most: 2 * len.next_power_of_two().ilog2() };
        }
        if is_half && halving.failures_in_a_row >= halving.most {
            attempted.undelivered.extend(pieces.into_iter().chain(self.pieces.drain(..)));
            return;
        }
        let mut halves = Vec::new();
        for piece in pieces {
            if piece.batch.len() > 1 {
                halves.extend(piece.halves(true));
            } else {
                attempted.undelivered.push(piece);
            }
        }
        self.put_back(halves);
    }

    fn put_back(&mut self, pieces: impl IntoIterator<Item = Piece<E>, IntoIter: DoubleEndedIterator>) {
        pieces.into_iter().rev().for_each(|piece| self.pieces.push_front(piece));
    }

    /// Returns whether some of its values have not ended.
    pub(super) fn is_open(&self) -> bool {
        self.is_ending || !self.pieces.is_empty()
    }

    /// Returns the number of attempts of the first piece.
    pub(super) fn attempts(&self) -> u32 {
        self.pieces.front().map_or(0, |piece| piece.attempts)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{sync::oneshot, time::Instant};

    use super::{Ack, Attempted, Flight, Piece, Wait};
    use crate::sink::{batch::Batch, error::Meaning};

    fn flight(values: std::ops::Range<u32>) -> Flight<u32> {
        Flight::new(0, Instant::now(), Piece::new(Batch::new(values.collect()), Vec::new()))
    }

    fn values(pieces: &[Piece<u32>]) -> Vec<u32> {
        pieces.iter().flat_map(|piece| piece.batch.to_vec()).collect()
    }

    /// Attempts until no piece is left. Returns the delivered values, the undelivered ones, and the number of attempts.
    fn run(
        mut flight: Flight<u32>,
        max_attempts: Option<u32>,
        mut attempt: impl FnMut(&[u32]) -> Result<(), Meaning>,
    ) -> (Vec<u32>, Vec<u32>, usize) {
        let (mut taken, mut undelivered, mut attempts) = (Vec::new(), Vec::new(), 0);
        while let Some(piece) = flight.pieces.front() {
            attempts += 1;
            let attempted = match attempt(&piece.batch) {
                Ok(()) => flight.taken(),
                Err(meaning) => flight.failed(meaning, max_attempts),
            };
            taken.extend(values(&attempted.taken));
            undelivered.extend(values(&attempted.undelivered));
        }
        (taken, undelivered, attempts)
    }

    /// A store that fails when one of these rows is in the batch.
    fn poisoned(rows: &'static [u32]) -> impl FnMut(&[u32]) -> Result<(), Meaning> {
        move |batch| if batch.iter().any(|row| rows.contains(row)) { Err(Meaning::Retry) } else { Ok(()) }
    }

    #[test]
    fn one_bad_row_costs_one_row() {
        for bad in [0, 1, 255, 256, 300, 511] {
            let rows: &'static [u32] = Vec::leak(vec![bad]);
            let (taken, undelivered, attempts) = run(flight(0..512), Some(3), poisoned(rows));
            assert_eq!(undelivered, [bad]);
            assert_eq!(taken.len(), 511);
            // Three, and then two for each halving.
            assert!(attempts <= 3 + 2 * 9, "{attempts}");
        }
        let (taken, undelivered, attempts) = run(flight(0..512), Some(3), poisoned(&[7, 400]));
        assert_eq!((taken.len(), undelivered.as_slice()), (510, [7, 400].as_slice()));
        assert!(attempts < 3 + 4 * 9, "{attempts}");
        let (taken, undelivered, _) = run(flight(0..20), Some(1), poisoned(&[3]));
        assert_eq!((taken.len(), undelivered.as_slice()), (19, [3].as_slice()));
    }

    #[test]
    fn a_store_that_fails_is_told_from_bad_rows() {
        let (taken, undelivered, attempts) = run(flight(0..512), Some(3), |_| Err(Meaning::Retry));
        assert!(taken.is_empty());
        assert_eq!(undelivered, Vec::from_iter(0..512));
        assert_eq!(attempts, 3 + 2 * 9);
        let (_, undelivered, attempts) = run(flight(0..2), Some(1), |_| Err(Meaning::Retry));
        assert_eq!((undelivered.len(), attempts), (2, 1 + 2));
        let (_, undelivered, attempts) = run(flight(0..1), Some(2), |_| Err(Meaning::Retry));
        assert_eq!((undelivered.len(), attempts), (1, 2));
    }

    #[test]
    fn what_is_too_large_is_split_until_it_fits() {
        let limit = |batch: &[u32]| if batch.len() > 3 { Err(Meaning::Split) } else { Ok(()) };
        let (taken, undelivered, attempts) = run(flight(0..12), Some(1), limit);
        assert_eq!((taken, undelivered.len(), attempts), (Vec::from_iter(0..12), 0, 1 + 2 + 4));
        let one_is_too_large = |batch: &[u32]| if batch.contains(&2) { Err(Meaning::Split) } else { Ok(()) };
        let (taken, undelivered, _) = run(flight(0..4), None, one_is_too_large);
        assert_eq!((taken, undelivered), (vec![0, 1, 3], vec![2]));
    }

    #[test]
    fn each_meaning_decides_which_values_are_tried_again() {
        type Case = (Meaning, &'static [u32], &'static [u32], &'static [u32], Wait);
        let after = Duration::from_secs(2);
        let cases: [Case; 11] = [
            (Meaning::Retry, &[], &[], &[0, 1, 2], Wait::Backoff),
            (Meaning::RetryAfter(after), &[], &[], &[0, 1, 2], Wait::For(after)),
            (Meaning::Permanent, &[], &[0, 1, 2], &[], Wait::No),
            (Meaning::Split, &[], &[], &[0, 1, 2], Wait::No),
            (Meaning::Rejected(vec![1]), &[0, 2], &[1], &[], Wait::No),
            (Meaning::Rejected(vec![]), &[0, 1, 2], &[], &[], Wait::No),
            (Meaning::Rejected(vec![3]), &[], &[], &[0, 1, 2], Wait::Backoff),
            (Meaning::RetryWithout(vec![0, 2]), &[], &[0, 2], &[1], Wait::No),
            (Meaning::RetryWithout(vec![]), &[], &[], &[0, 1, 2], Wait::Backoff),
            (Meaning::RetryOnly(vec![2]), &[0, 1], &[], &[2], Wait::Backoff),
            (Meaning::RetryOnly(vec![1, 9]), &[], &[], &[0, 1, 2], Wait::Backoff),
        ];
        for (meaning, taken, undelivered, again, wait) in cases {
            let mut flight = flight(0..3);
            let attempted = flight.failed(meaning.clone(), None);
            assert_eq!(values(&attempted.taken), taken, "{meaning:?}");
            assert_eq!(values(&attempted.undelivered), undelivered, "{meaning:?}");
            assert_eq!(values(flight.pieces.make_contiguous()), again, "{meaning:?}");
            assert_eq!(attempted.wait, wait, "{meaning:?}");
        }
    }

    #[test]
    fn only_the_attempts_of_what_is_tried_again_are_counted() {
        let mut flight = flight(0..4);
        flight.failed(Meaning::RetryOnly(vec![0, 3]), Some(2));
        assert_eq!(flight.attempts(), 1);
        flight.failed(Meaning::RetryWithout(vec![0]), Some(2));
        assert_eq!(flight.attempts(), 1);
        let Attempted { undelivered, .. } = flight.failed(Meaning::Retry, Some(2));
        assert_eq!(values(&undelivered), [3]);
    }

    #[test]
    fn acknowledgements_follow_their_values() {
        let (mut senders, mut receivers) = (Vec::new(), Vec::new());
        for index in [0, 2, 3] {
            let (sender, receiver): (Ack, _) = oneshot::channel();
            senders.push((index, sender));
            receivers.push((index as u32, receiver));
        }
        let batch = Batch::new(vec![0, 1, 2, 3]);
        let mut flight = Flight::new(0, Instant::now(), Piece::new(batch, senders));
        flight.failed(Meaning::Split, None);
        flight.failed(Meaning::RetryWithout(vec![1]), None);
        let mut seen = Vec::new();
        while !flight.pieces.is_empty() {
            for piece in flight.taken().taken {
                for (index, ack) in piece.acks {
                    let value = piece.batch[index];
                    ack.send(Err(Some(value.to_string()))).unwrap();
                    seen.push(value);
                }
            }
        }
        assert_eq!(seen, [0, 2, 3]);
        for (value, mut receiver) in receivers {
            assert_eq!(receiver.try_recv().unwrap(), Err(Some(value.to_string())));
        }
    }
}
