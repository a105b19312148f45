// SPDX-License-Identifier: BSD-3-Clause

//! The one that takes everything over: what it has been told so far.
//!
//! It reads nothing itself; whoever does feeds it. Must not know of sockets.

use super::image::{
    self, Facts, Frame, HEAD, Household, MOST_BYTES, ParkFacts, Role, SenderFacts, SpoolFacts,
};
use std::collections::VecDeque;
use std::mem;

/// Everything that a daemon had. Dropping it closes what is in it, which takes nothing away from one
/// that has it still.
#[derive(Debug)]
pub struct Estate<R> {
    /// What there is one of, and who waits at the control socket.
    pub things: Vec<(Role, R)>,
    /// What is known of it.
    pub household: Household,
    /// The senders' connections, the one that has been silent for the longest first.
    pub senders: Vec<(R, SenderFacts)>,
    /// The connections whose response is still to be written, and the files of each.
    pub spools: Vec<(R, Vec<R>, SpoolFacts)>,
    /// The connections that are parked, and the links to the workers that they are offered to.
    pub parks: Vec<(R, Option<R>, ParkFacts)>,
    /// The connections that linger, the one that was handed over first being the first of all.
    pub connections: Vec<(R, Facts)>,
}

impl<R> Default for Estate<R> {
    fn default() -> Self {
        let household = Household::default();
        let (senders, spools, parks, connections) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Estate { things: Vec::new(), household, senders, spools, parks, connections }
    }
}

impl<R> Estate<R> {
    /// Takes out what is there once, or the first of it.
    pub fn take(&mut self, role: Role) -> Option<R> {
        let place = self.things.iter().position(|(of, _)| *of == role)?;
        Some(self.things.remove(place).1)
    }
}

/// How far it has come.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one, once")]
pub enum Progress<R> {
    /// There is more to come.
    Pending,
    /// The daemon serves, and is not to be taken over from.
    Serving,
    /// That was all.
    Complete(Estate<R>),
}

/// What a predecessor said is no image.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("what it says is not understood: {0}")]
pub struct Nonsense(String);

/// See the module's head.
pub struct Heir<R> {
    bytes: VecDeque<u8>,
    /// In the order in which they came; the first are the next frame's.
    descriptors: VecDeque<R>,
    estate: Estate<R>,
}

impl<R> Default for Heir<R> {
    fn default() -> Self {
        Heir { bytes: VecDeque::new(), descriptors: VecDeque::new(), estate: Estate::default() }
    }
}

impl<R> Heir<R> {
    /// Takes in what has arrived. After anything but [`Progress::Pending`] there is nothing to come.
    ///
    /// # Errors
    /// [`Nonsense`]
    pub fn feed(
        &mut self,
        bytes: &[u8],
        descriptors: impl IntoIterator<Item = R>,
    ) -> Result<Progress<R>, Nonsense> {
        self.bytes.extend(bytes);
        self.descriptors.extend(descriptors);
        while let Some((frame, descriptors)) = self.next()? {
            match frame {
                Frame::Serving => return Ok(Progress::Serving),
                Frame::End => return Ok(Progress::Complete(mem::take(&mut self.estate))),
                Frame::Unknown => {}
                Frame::Senders { facts } => {
                    let facts = facts.into_iter().chain(std::iter::repeat_with(SenderFacts::default));
                    self.estate.senders.extend(descriptors.into_iter().zip(facts));
                }
                Frame::Spools { facts } => {
                    let mut descriptors = descriptors.into_iter();
                    for facts in facts {
                        let Some(socket) = descriptors.next() else { break };
                        let files: Vec<_> = descriptors.by_ref().take(facts.files.len()).collect();
                        // Without one of them what is sent of the others would look whole.
                        if files.len() < facts.files.len() {
                            return Err(Nonsense(format!("{} of {} files", files.len(), facts.files.len())));
                        }
                        self.estate.spools.push((socket, files, facts));
                    }
                }
                Frame::Parks { facts } => {
                    let mut descriptors = descriptors.into_iter();
                    for facts in facts {
                        let Some(socket) = descriptors.next() else { break };
                        let link = if facts.is_offered { descriptors.next() } else { None };
                        // A worker may have it, and it would be offered to another one.
                        if link.is_none() && facts.is_offered {
                            return Err(Nonsense("a link is missing".to_owned()));
                        }
                        self.estate.parks.push((socket, link, facts));
                    }
                }
                Frame::Household(household) => {
                    self.estate.things.extend(household.roles.iter().copied().zip(descriptors));
                    self.estate.household = household;
                }
                Frame::Connections { facts } => {
                    // One of which nothing is known is new.
                    let facts = facts.into_iter().chain(std::iter::repeat_with(Facts::default));
                    self.estate.connections.extend(descriptors.into_iter().zip(facts));
                }
            }
        }
        Ok(Progress::Pending)
    }

    /// What came behind the last frame, in one piece with it: who is too slow is told that nothing is its own while it still
    /// has that to read.
    pub fn last_word(&self) -> Option<u8> {
        self.bytes.front().copied()
    }

    /// The next frame, with its descriptors, once all of it is there.
    fn next(&mut self) -> Result<Option<(Frame, Vec<R>)>, Nonsense> {
        let Some(head) = self.bytes.iter().copied().take(HEAD).collect::<Vec<_>>().try_into().ok() else {
            return Ok(None);
        };
        let (length, count) = image::head(head);
        if length > MOST_BYTES {
            return Err(Nonsense(format!("a frame of {length} bytes")));
        }
        if self.bytes.len() < HEAD + length {
            return Ok(None);
        }
        // They came with the head, or the system has lost them.
        if self.descriptors.len() < count {
            return Err(Nonsense(format!("{} of {count} descriptors", self.descriptors.len())));
        }
        self.bytes.drain(..HEAD);
        let text: Vec<u8> = self.bytes.drain(..length).collect();
        let frame = serde_json::from_slice(&text).map_err(|e| Nonsense(e.to_string()))?;
        Ok(Some((frame, self.descriptors.drain(..count).collect())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::linger::{Linger, Stage};
    use crate::rules::time::Time;
    use serde_json::{Value, json};
    use std::num::NonZeroU16;

    const NOW: Time = Time::from_ticks(50_000);

    /// What `frames` come to, if they arrive by so many bytes.
    fn fed(frames: &[(Value, usize)], by: usize) -> Result<Progress<usize>, Nonsense> {
        let mut heir = Heir::default();
        let mut number = 0;
        for (frame, count) in frames {
            let bytes = image::frame(frame, *count);
            let mut descriptors = (number..number + count).collect::<Vec<_>>();
            number += count;
            for piece in bytes.chunks(by) {
                match heir.feed(piece, mem::take(&mut descriptors))? {
                    Progress::Pending => {}
                    other => return Ok(other),
                }
            }
        }
        Ok(Progress::Pending)
    }

    fn linger(stage: Stage) -> Linger {
        let [handed_over, asked, heard] = [1, 40_000, 49_999].map(Time::from_ticks);
        let given = (stage == Stage::HasItAll).then(|| NonZeroU16::new(2)).flatten();
        Linger { handed_over, asked, heard, stage, given }
    }

    #[test]
    fn facts_arrive_as_they_were_sent_whatever_the_time_is_there() {
        for stage in [Stage::New, Stage::Asked, Stage::UnderWay, Stage::HasItAll] {
            for ticks in 0..200 {
                let of = Linger { heard: Time::from_ticks(50_000 - ticks), ..linger(stage) };
                let text = serde_json::to_string(&Facts::of(&of, NOW)).unwrap();
                let told: Facts = serde_json::from_str(&text).unwrap();
                assert_eq!(told.at(NOW), of);
                let then = told.at(Time::from_ticks(7));
                assert_eq!(then.heard, Time::from_ticks(7_u32.wrapping_sub(ticks)));
            }
        }
    }

    #[test]
    fn all_of_it_arrives_in_its_order_however_it_is_cut_up() {
        let facts = [Stage::New, Stage::HasItAll].map(|stage| Facts::of(&linger(stage), NOW));
        let frames = [
            (json!({"frame": "household", "roles": ["control", "door"], "uptime": 9}), 2),
            (json!({"frame": "senders"}), 1),
            (
                json!({"frame": "senders", "facts": [{"spools": true}, {"spools": true, "has_credit": true, "owed": 1}]}),
                2,
            ),
            (json!({"frame": "connections", "facts": facts}), 2),
            (json!({"frame": "end"}), 0),
        ];
        for by in [1, 3, 100, 10_000] {
            let Ok(Progress::Complete(estate)) = fed(&frames, by) else { panic!("not complete, by {by}") };
            assert_eq!(estate.things, [(Role::Control, 0), (Role::Door, 1)]);
            let told = [(false, false), (true, false), (true, true)];
            let told = told.map(|(spools, has_credit)| SenderFacts {
                spools,
                has_credit,
                owed: usize::from(has_credit),
            });
            assert_eq!(estate.household.uptime, 9);
            assert!(estate.senders.into_iter().eq((2..).zip(told)));
            let connections: Vec<_> =
                estate.connections.iter().map(|(fd, facts)| (*fd, facts.at(NOW))).collect();
            assert_eq!(connections, [(5, linger(Stage::New)), (6, linger(Stage::HasItAll))]);
        }
    }

    #[test]
    fn what_a_later_version_says_is_left_out_and_what_an_earlier_one_does_not_does_no_harm() {
        let frames = [
            (json!({"frame": "household", "roles": ["soul", "control"], "mood": {"good": true}}), 2),
            (json!({"frame": "dreams", "of": [1, 2]}), 3),
            (json!({"frame": "connections", "facts": [{"stage": "parked", "colour": 3}]}), 2),
            (json!({"frame": "end", "really": true}), 0),
        ];
        let Ok(Progress::Complete(mut estate)) = fed(&frames, 10) else { panic!("not complete") };
        assert_eq!(estate.take(Role::Control), Some(1));
        assert_eq!(estate.take(Role::Door), None);
        let [(5, strange), (6, silent)] = &estate.connections[..] else { panic!("{estate:?}") };
        for facts in [strange, silent] {
            assert_eq!(facts.at(NOW), Linger { stage: Stage::Asked, ..Linger::new(NOW) });
        }
    }

    #[test]
    fn what_is_said_behind_it_in_one_piece_with_it_is_not_lost() {
        let household = image::frame(&json!({"frame": "household", "roles": []}), 0);
        let end = image::frame(&json!({"frame": "end"}), 0);
        for said in [&[][..], &[image::KEPT]] {
            let mut heir = Heir::<u8>::default();
            let all = [&household, &end, said].concat();
            assert!(matches!(heir.feed(&all, []), Ok(Progress::Complete(_))));
            assert_eq!(heir.last_word(), said.first().copied());
        }
    }

    #[test]
    fn what_is_no_image_is_an_error() {
        let mut heir = Heir::<()>::default();
        assert!(heir.feed(b"lingering 4\npeak 9\n", []).is_err(), "an older one's counters");
        assert!(fed(&[(json!([1, 2]), 0)], 100).is_err());
        let mut heir = Heir::<()>::default();
        assert!(heir.feed(&image::frame(&json!({"frame": "senders"}), 1), []).is_err(), "none came");
    }

    #[test]
    fn one_that_serves_is_told_from_one_that_gives() {
        assert!(matches!(fed(&[(json!({"frame": "serving"}), 0)], 100), Ok(Progress::Serving)));
        assert!(matches!(fed(&[(json!({"frame": "senders"}), 1)], 100), Ok(Progress::Pending)));
    }
}
