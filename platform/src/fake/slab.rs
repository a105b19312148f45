// SPDX-License-Identifier: BSD-3-Clause

//! A list whose places are used again, and whose keys are not. Must not know what it keeps.

/// Names one thing for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    place: u32,
    generation: u32,
}

impl Key {
    /// A number for the log.
    pub const fn number(self) -> u64 {
        self.place as u64
    }
}

struct Place<T> {
    generation: u32,
    value: Option<T>,
}

/// See the module's head.
pub(super) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub const fn new() -> Self {
        Slab { places: Vec::new(), free: Vec::new() }
    }

    pub fn insert(&mut self, value: T) -> Key {
        match self.free.pop() {
            Some(place) => {
                let it = &mut self.places[place as usize];
                it.value = Some(value);
                Key { place, generation: it.generation }
            }
            None => {
                self.places.push(Place { generation: 0, value: Some(value) });
                Key { place: (self.places.len() - 1) as u32, generation: 0 }
            }
        }
    }

    pub fn remove(&mut self, key: Key) -> Option<T> {
        let place = self.places.get_mut(key.place as usize)?;
        if place.generation != key.generation {
            return None;
        }
        let value = place.value.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(key.place);
        Some(value)
    }

    pub fn get(&self, key: Key) -> Option<&T> {
        let place = self.places.get(key.place as usize)?;
        place.value.as_ref().filter(|_| place.generation == key.generation)
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.place as usize)?;
        place.value.as_mut().filter(|_| place.generation == key.generation)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter_map(|place| place.value.as_ref())
    }

    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        for place in 0..self.places.len() {
            let it = &self.places[place];
            if it.value.as_ref().is_some_and(|value| !keep(value)) {
                self.remove(Key { place: place as u32, generation: it.generation });
            }
        }
    }

    /// What is in a place taken by chance, which may be empty.
    pub fn any(&self, rng: &mut fastrand::Rng) -> Option<Key> {
        let place = rng.usize(..self.places.len().max(1));
        let it = self.places.get(place)?;
        it.value.as_ref().map(|_| Key { place: place as u32, generation: it.generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_never_names_the_next_in_its_place() {
        let mut slab = Slab::new();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!((slab.get(first), slab.get(second), slab.len()), (None, Some(&"second"), 1));
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut "second"));
    }
}
