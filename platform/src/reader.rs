// SPDX-License-Identifier: BSD-3-Clause

//! Does with files what may take long, in threads of its own: a disk takes its time, and another machine, or whoever
//! writes to a file, may not answer at all.
//!
//! Must not know what is read, or for whom.

use crate::backend::Descriptor;
use crate::content::{Content, FORGETS, Medium, Open, PAGE, Regular};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

/// What was read.
pub struct Answer<C: Content> {
    /// The number that it was asked with.
    pub ticket: u64,
    /// What was there.
    pub piece: C::Piece,
    /// As [`Content::read`] says.
    pub result: io::Result<usize>,
}

/// The contract: whoever asks waits for nothing, and what never ends keeps waiting only what is of the same file
/// system, where that can be helped. As a descriptor it is readable while there is an answer, and when something was closed
/// until it is seen that there is none.
pub trait Reader<C: Content>: Descriptor {
    /// Has it read, at most `most` bytes at `offset`. That is answered once, some time; not, perhaps, where the content
    /// was closed meanwhile.
    fn read(&mut self, ticket: u64, content: &C, offset: u64, most: usize);

    /// Has the memory of what is before `end` given back, from `start` on: nobody reads that again. Tells how many bytes
    /// that will be: whole pages, and 0 where it cannot be, or where so many others wait for the same that it is to be
    /// tried later.
    fn forget(&mut self, content: &C, start: u64, end: u64) -> u64;

    /// Closes it: here where that never waits.
    fn close(&mut self, content: C);

    /// An answer, if there is one.
    fn take(&mut self) -> Option<Answer<C>>;

    /// How many it was given to close that are still open, for whatever reason: they count against the descriptor limit.
    fn closing(&self) -> usize;
}

/// What is done at once on one file system: it may be made for that, and one read that takes long is not to keep the
/// next one waiting.
const OF_ONE: usize = 4;
/// The same where nobody can tell what a file is on: so many can hang before somebody waits who need not.
const OF_UNKNOWN: usize = 32;
/// And of all: beyond that they wait for each other.
const OF_ALL: usize = 64;

/// How many may wait to have memory given back: that is no loss, as it is free again when the file is closed.
const FORGETTING: usize = 256;

/// How many questions wait before it is looked first whether their files are still there.
const SWEEP: usize = 256;

/// What a thread is to do. What nobody has any more is neither read nor given back.
enum Question {
    Read { ticket: u64, open: Weak<Open>, offset: u64, most: usize },
    Forget { open: Weak<Open>, start: u64, end: u64 },
    Close(Arc<Open>),
}

impl Question {
    /// Does it. Whoever has the file last closes it, and here nobody waits for that.
    fn answer(self) -> Option<Answer<Regular>> {
        match self {
            Question::Read { ticket, open, offset, most } => {
                let open = open.upgrade().filter(|open| !open.is_closing())?;
                let mut piece = Vec::new();
                let result = open.read(offset, most, &mut piece);
                Some(Answer { ticket, piece, result })
            }
            Question::Forget { open, start, end } => {
                open.upgrade()?.forget(start, end);
                None
            }
            Question::Close(open) => {
                drop(open);
                None
            }
        }
    }

    fn is_wanted(&self) -> bool {
        match self {
            Question::Read { open, .. } | Question::Forget { open, .. } => {
                open.upgrade().is_some_and(|open| !open.is_closing())
            }
            Question::Close(_) => true,
        }
    }
}

/// What is to be done on one file system, in its order, and by how many threads it is being done.
struct Queue {
    medium: Medium,
    questions: VecDeque<Question>,
    busy: usize,
    /// How many there were after the last sweep, or so.
    swept: usize,
}

impl Queue {
    fn new(medium: Medium) -> Self {
        Queue { medium, questions: VecDeque::new(), busy: 0, swept: SWEEP }
    }

    /// How many threads it may have.
    fn most(&self) -> usize {
        if self.medium == Medium::Unknown { OF_UNKNOWN } else { OF_ONE }
    }

    /// For how many more threads it has something to do.
    fn open(&self) -> usize {
        self.questions.len().min(self.most().saturating_sub(self.busy))
    }

    fn push(&mut self, question: Question) {
        if self.questions.len() >= self.swept {
            self.questions.retain(Question::is_wanted);
            self.swept = SWEEP.max(2 * self.questions.len());
        }
        self.questions.push_back(question);
    }
}

/// What the threads and whoever asks them have in common. No thread keeps it while it does anything.
#[derive(Default)]
struct Pool {
    /// Those with something to do. Who was served last is the last one.
    queues: Vec<Queue>,
    threads: usize,
    /// Of these, how many have nothing to do yet.
    idle: usize,
    answers: VecDeque<Answer<Regular>>,
    /// Nobody asks any more.
    is_over: bool,
}

impl Pool {
    fn queue(&mut self, medium: Medium) -> &mut Queue {
        let place = self.queues.iter().position(|queue| queue.medium == medium);
        let place = place.unwrap_or_else(|| {
            self.queues.push(Queue::new(medium));
            self.queues.len() - 1
        });
        &mut self.queues[place]
    }

    /// How many questions wait there.
    fn waiting(&self, medium: Medium) -> usize {
        let queue = self.queues.iter().find(|queue| queue.medium == medium);
        queue.map_or(0, |queue| queue.questions.len())
    }

    /// What to do next, and on what.
    fn next(&mut self) -> Option<(Medium, Question)> {
        let place = self.queues.iter().position(|queue| queue.open() > 0)?;
        let mut queue = self.queues.remove(place);
        let question = queue.questions.pop_front();
        queue.busy += 1;
        let medium = queue.medium;
        self.queues.push(queue);
        question.map(|question| (medium, question))
    }

    /// Something that was next is done.
    fn has_done(&mut self, medium: Medium) {
        self.queue(medium).busy -= 1;
        self.queues.retain(|queue| queue.busy > 0 || !queue.questions.is_empty());
    }

    /// Whether there is something to do for one more thread than there are.
    fn wants_thread(&self) -> bool {
        let open = self.queues.iter().map(Queue::open).sum::<usize>();
        open > self.idle && self.threads < OF_ALL
    }
}

struct Shared {
    pool: Mutex<Pool>,
    /// There is something to do.
    work: Condvar,
    ring: UnixStream,
}

impl Shared {
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that there is an answer, or something was closed. Where there is no room for a byte there is one already.
    fn ring(&self) {
        let _ = (&self.ring).write(&[0]);
    }

    /// What a thread does.
    fn serve(&self) {
        let mut pool = self.pool();
        pool.idle -= 1;
        while !pool.is_over {
            let Some((medium, question)) = pool.next() else {
                pool.idle += 1;
                pool = self.work.wait(pool).unwrap_or_else(PoisonError::into_inner);
                pool.idle -= 1;
                continue;
            };
            drop(pool);
            let is_told = !matches!(question, Question::Forget { .. });
            let answer = question.answer();
            pool = self.pool();
            pool.has_done(medium);
            pool.answers.extend(answer);
            if is_told {
                self.ring();
            }
        }
        pool.threads -= 1;
    }
}

/// Threads that start when there is something to do, and then serve whatever file system has something. Most daemons
/// never have any.
pub struct Threads {
    shared: Arc<Shared>,
    /// What is written to the shared one comes out of this one.
    bell: UnixStream,
    /// What was given to be closed, until it is.
    closing: Arc<AtomicUsize>,
}

impl Threads {
    /// None yet.
    ///
    /// # Errors
    /// What socketpair(2) says.
    pub fn new() -> io::Result<Self> {
        let (bell, ring) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ring.set_nonblocking(true)?;
        let shared = Shared { pool: Mutex::default(), work: Condvar::new(), ring };
        Ok(Threads { shared: Arc::new(shared), bell, closing: Arc::default() })
    }

    /// Has it done. Where the system has no thread to spare, those do it that there are; where there is none it waits
    /// until there is one, but for a read, whose answer says so: to do it here would keep everybody waiting.
    fn ask(&self, medium: Medium, question: Question) {
        let mut pool = self.shared.pool();
        pool.queue(medium).push(question);
        let started = if pool.wants_thread() { self.start(&mut pool) } else { Ok(()) };
        if let Err(error) = started.or_else(|error| if pool.threads > 0 { Ok(()) } else { Err(error) }) {
            match pool.queue(medium).questions.pop_back() {
                Some(Question::Read { ticket, .. }) => {
                    pool.answers.push_back(Answer { ticket, piece: Vec::new(), result: Err(error) });
                    self.shared.ring();
                }
                other => pool.queue(medium).questions.extend(other),
            }
        }
        drop(pool);
        self.shared.work.notify_one();
    }

    fn start(&self, pool: &mut Pool) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name("reader".to_owned()).spawn(move || shared.serve())?;
        pool.threads += 1;
        pool.idle += 1;
        Ok(())
    }
}

/// What is being done goes on, be it for ever, and what is not begun is not done.
impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.pool().is_over = true;
        self.shared.work.notify_all();
    }
}

impl Descriptor for Threads {
    fn number(&self) -> RawFd {
        self.bell.as_raw_fd()
    }
}

impl Reader<Regular> for Threads {
    fn read(&mut self, ticket: u64, content: &Regular, offset: u64, most: usize) {
        self.ask(content.medium, Question::Read { ticket, open: content.weak(), offset, most });
    }

    fn forget(&mut self, content: &Regular, start: u64, end: u64) -> u64 {
        let (start, end) = (start.next_multiple_of(PAGE), end - end % PAGE);
        let can_be = FORGETS && content.medium == Medium::Memory && content.is_ours_to_write;
        if !can_be || start >= end || self.shared.pool().waiting(Medium::Memory) >= FORGETTING {
            return 0;
        }
        self.ask(content.medium, Question::Forget { open: content.weak(), start, end });
        end - start
    }

    fn close(&mut self, content: Regular) {
        let medium = content.medium;
        let open = content.into_closing(&self.closing);
        match medium {
            // Where memory is just being given back that thread closes it.
            Medium::Memory => drop(open),
            _ => self.ask(medium, Question::Close(open)),
        }
    }

    fn take(&mut self) -> Option<Answer<Regular>> {
        if let Some(answer) = self.shared.pool().answers.pop_front() {
            return Some(answer);
        }
        // It is rung after an answer is there: what comes from here on rings anew, and what has come since is seen.
        while matches!(self.bell.read(&mut [0; 256]), Ok(1..)) {}
        self.shared.pool().answers.pop_front().inspect(|_| self.shared.ring())
    }

    fn closing(&self) -> usize {
        self.closing.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn file() -> Regular {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lingerd-reader-{}-{number}", std::process::id()));
        std::fs::write(&path, [7; 100]).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        Regular::of(file.into()).expect("it is a file")
    }

    /// More answers than the bell has room for, of which nobody takes one meanwhile, keep no thread waiting; and
    /// whoever stops in the middle of them hears that there are more.
    #[test]
    fn any_number_of_answers_may_wait() {
        const QUESTIONS: usize = 3_000;
        let content = file();
        let mut reader = Threads::new().unwrap();
        for ticket in 0..QUESTIONS as u64 {
            reader.read(ticket, &content, 0, 100);
        }
        while reader.shared.pool().answers.len() < QUESTIONS {
            thread::yield_now();
        }
        let mut taken = 0;
        while taken < QUESTIONS {
            let mut byte = [0];
            reader.bell.set_nonblocking(false).unwrap();
            assert_eq!(reader.bell.read(&mut byte).unwrap(), 1, "it is readable");
            assert_eq!((&reader.shared.ring).write(&byte).unwrap(), 1);
            reader.bell.set_nonblocking(true).unwrap();
            taken += (0..50).filter(|_| reader.take().is_some()).count();
        }
    }

    /// What is to be done on file systems that do not exist, for as long as nobody says that it is done.
    #[derive(Default)]
    struct Scene(Pool);

    impl Scene {
        /// A question, and the file that it is about.
        fn read(&mut self, medium: Medium, ticket: u64) -> Arc<Open> {
            let open = file().weak().upgrade().unwrap();
            let question = Question::Read { ticket, open: Arc::downgrade(&open), offset: 0, most: 1 };
            self.0.queue(medium).push(question);
            open
        }

        /// Which questions are begun, if as many threads start as may.
        fn begun(&mut self) -> Vec<u64> {
            let mut begun = Vec::new();
            while self.0.wants_thread() {
                self.0.threads += 1;
                begun.extend(self.next());
            }
            begun
        }

        fn next(&mut self) -> Option<u64> {
            match self.0.next() {
                Some((_, Question::Read { ticket, .. })) => Some(ticket),
                Some(_) => panic!("nobody asked for anything else"),
                None => None,
            }
        }
    }

    #[test]
    fn what_hangs_keeps_only_what_is_of_the_same_file_system_waiting() {
        let mut scene = Scene::default();
        let _hang: Vec<_> = (0..10).map(|ticket| scene.read(Medium::System(1), ticket)).collect();
        assert_eq!(scene.begun(), [0, 1, 2, 3]);
        let _others: Vec<_> = (10..12).map(|ticket| scene.read(Medium::System(2), ticket)).collect();
        let _memory = scene.read(Medium::Memory, 12);
        let _unknown: Vec<_> = (20..60).map(|ticket| scene.read(Medium::Unknown, ticket)).collect();
        let begun = scene.begun();
        assert_eq!(begun.len(), 3 + OF_UNKNOWN);
        assert!((10..=12).all(|ticket| begun.contains(&ticket)));
        // One of them answers, and whoever did that goes on with the next.
        scene.0.has_done(Medium::System(1));
        assert_eq!((scene.next(), scene.next()), (Some(4), None));
        // Who has nothing to do there takes another file system over.
        scene.0.has_done(Medium::System(2));
        let _new = scene.read(Medium::System(3), 70);
        assert_eq!((scene.next(), scene.begun()), (Some(70), vec![]));
    }

    #[test]
    fn there_is_an_end_to_the_threads() {
        let mut scene = Scene::default();
        let all: Vec<_> = (0..100).map(|number| scene.read(Medium::System(number / 5), number)).collect();
        assert_eq!(scene.begun().len(), OF_ALL);
        assert_eq!(scene.0.threads, OF_ALL);
        drop(all);
    }

    #[test]
    fn one_thread_goes_round_the_file_systems() {
        let mut scene = Scene::default();
        let _all: Vec<_> = (0..9).map(|n| scene.read(Medium::System(n / 3), n)).collect();
        for ticket in [0, 3, 6, 1, 4, 7, 2, 5, 8] {
            assert_eq!(scene.next(), Some(ticket));
            scene.0.has_done(Medium::System(ticket / 3));
        }
        assert!(scene.next().is_none() && scene.0.queues.is_empty());
    }

    /// However many come and go while nothing is read.
    #[test]
    fn what_nobody_wants_any_more_takes_no_room() {
        let mut scene = Scene::default();
        let still = scene.read(Medium::System(1), 0);
        for ticket in 1..10_000 {
            drop(scene.read(Medium::System(1), ticket));
        }
        let queue = scene.0.queue(Medium::System(1));
        assert!(queue.questions.len() <= SWEEP, "{}", queue.questions.len());
        assert_eq!(scene.next(), Some(0));
        drop(still);
    }

    #[test]
    fn whose_file_has_gone_is_not_read() {
        let content = file();
        let open = content.weak();
        let question = || Question::Read { ticket: 1, open: open.clone(), offset: 0, most: 1 };
        assert!(question().is_wanted() && question().answer().is_some());
        let leaving = content.into_closing(&Arc::default());
        assert!(!question().is_wanted() && question().answer().is_none());
        drop(leaving);
        assert!(!question().is_wanted() && question().answer().is_none());
    }

    /// Whoever has it last, here a thread in the middle of a read.
    #[test]
    fn what_is_closed_counts_until_it_is() {
        let mut reader = Threads::new().unwrap();
        let content = file();
        let being_read = content.weak().upgrade();
        reader.close(content);
        while !reader.shared.pool().queues.is_empty() {
            thread::yield_now();
        }
        assert_eq!(reader.closing(), 1);
        drop(being_read);
        assert_eq!(reader.closing(), 0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_given_back_elsewhere_and_by_whole_pages() {
        use std::os::fd::FromRawFd;
        use std::os::unix::fs::{FileExt, MetadataExt};
        // SAFETY: memfd_create(2) reads the name and returns a descriptor that nobody else has.
        let file =
            unsafe { File::from_raw_fd(crate::check(libc::memfd_create(c"test".as_ptr(), 0)).unwrap()) };
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        let blocks = file.try_clone().unwrap();
        let content = Regular::of(file.into()).expect("it is a file");
        let mut reader = Threads::new().unwrap();
        assert_eq!(reader.forget(&content, 0, PAGE - 1), 0);
        assert_eq!(reader.forget(&content, 1, 3 * PAGE + 1), 2 * PAGE);
        while blocks.metadata().unwrap().blocks() * 512 > (1 << 20) - 2 * PAGE {
            thread::yield_now();
        }
        // Nobody is given anything back where too many wait for it.
        let mut stuck = Threads::new().unwrap();
        for _ in 0..FORGETTING {
            let question = Question::Forget { open: content.weak(), start: 0, end: PAGE };
            stuck.shared.pool().queue(Medium::Memory).push(question);
        }
        assert_eq!(stuck.forget(&content, 3 * PAGE, 4 * PAGE), 0);
        reader.close(content);
        assert_eq!(reader.closing(), 0);
    }
}
