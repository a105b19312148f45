// SPDX-License-Identifier: BSD-3-Clause

//! Chains through rows: each row has its neighbours' places in it, so that it joins and leaves in
//! constant time and without allocating.
//!
//! Must not know what a row or a chain is for.

use std::mem;

/// Set in what stands for the end of a chain; the other bits say of which.
const END: u32 = 1 << 31;

/// A row's neighbours in one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    before: u32,
    after: u32,
}

impl Links {
    /// Of a row in no chain.
    pub const NONE: Links = Links { before: u32::MAX, after: u32::MAX };

    /// Of a row in a chain that is used from one end only, and has no other links: before `next`.
    pub const fn to(next: Option<u32>) -> Links {
        let after = match next {
            Some(row) => row,
            None => END,
        };
        Links { before: u32::MAX, after }
    }

    /// The row behind it: what [`to`](Self::to) said, too.
    pub fn next(self) -> Option<u32> {
        (self.after & END == 0).then_some(self.after)
    }
}

/// Rows with links, each below 2^31.
pub trait Linked {
    /// The links of one row.
    fn links(&mut self, row: u32) -> &mut Links;
}

/// First and last row of each of some chains; [`Links::NONE`] has no meaning here.
pub struct Chains(Box<[Links]>);

impl Chains {
    /// `count` chains with nothing in them.
    pub fn new(count: u32) -> Self {
        Chains((0..count).map(|chain| Links { before: END | chain, after: END | chain }).collect())
    }

    /// The first row of `chain`.
    pub fn first(&self, chain: u32) -> Option<u32> {
        // A chain's own links are those of a row between its last one and its first one.
        let first = self.0[chain as usize].after;
        (first & END == 0).then_some(first)
    }

    /// Puts `row`, which is in no such chain, at the end of `chain`.
    pub fn push(&mut self, chain: u32, row: u32, rows: &mut impl Linked) {
        let last = mem::replace(&mut self.0[chain as usize].before, row);
        *rows.links(row) = Links { before: last, after: END | chain };
        self.side(last, rows).after = row;
    }

    /// Takes `row` out. Returns which chain has nothing in it any more, if it was the only one there;
    /// nothing happens to a row that is in no chain.
    pub fn remove(&mut self, row: u32, rows: &mut impl Linked) -> Option<u32> {
        let links = mem::replace(rows.links(row), Links::NONE);
        if links == Links::NONE {
            return None;
        }
        self.side(links.before, rows).after = links.after;
        self.side(links.after, rows).before = links.before;
        (links.before == links.after && links.before & END != 0).then_some(links.before & !END)
    }

    /// The links of a row, or of a chain itself.
    fn side<'a>(&'a mut self, at: u32, rows: &'a mut impl Linked) -> &'a mut Links {
        if at & END == 0 { rows.links(at) } else { &mut self.0[(at & !END) as usize] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rows(Vec<Links>);

    impl Linked for Rows {
        fn links(&mut self, row: u32) -> &mut Links {
            &mut self.0[row as usize]
        }
    }

    fn all(chains: &Chains, chain: u32, rows: &mut Rows) -> Vec<u32> {
        let mut found = Vec::new();
        let mut next = chains.first(chain);
        while let Some(row) = next {
            found.push(row);
            let after = rows.links(row).after;
            next = (after & END == 0).then_some(after);
        }
        found
    }

    #[test]
    fn a_chain_keeps_the_order_whoever_leaves_it() {
        for leaves in 0..3 {
            let mut rows = Rows(vec![Links::NONE; 4]);
            let mut chains = Chains::new(2);
            chains.push(0, 3, &mut rows);
            for row in 0..3 {
                chains.push(1, row, &mut rows);
            }
            assert_eq!(chains.remove(leaves, &mut rows), None);
            assert_eq!(chains.remove(leaves, &mut rows), None, "it has left already");
            let mut stay: Vec<_> = (0..3).filter(|&row| row != leaves).collect();
            assert_eq!(all(&chains, 1, &mut rows), stay);
            chains.push(1, leaves, &mut rows);
            stay.push(leaves);
            assert_eq!(all(&chains, 1, &mut rows), stay);
            assert_eq!(all(&chains, 0, &mut rows), [3]);
        }
    }

    #[test]
    fn the_last_one_to_leave_says_so() {
        let mut rows = Rows(vec![Links::NONE; 2]);
        let mut chains = Chains::new(3);
        chains.push(2, 1, &mut rows);
        chains.push(2, 0, &mut rows);
        assert_eq!((chains.remove(1, &mut rows), chains.first(2)), (None, Some(0)));
        assert_eq!((chains.remove(0, &mut rows), chains.first(2)), (Some(2), None));
    }
}
