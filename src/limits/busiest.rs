//! Who meets a limit most: a few keys with their counts, in fixed memory (the space-saving algorithm of Metwally, Agrawal and El Abbadi, 2005).

/// Keys that are told, at most.
const MOST: usize = 16;
/// Bytes of a key that are shown, at most.
const LONGEST: usize = 64;

/// A key, and how often it met the limit: at most so often, where many others came before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Busy {
    /// How it is shown.
    pub key: String,
    /// How often.
    pub count: u64,
}

/// The keys that are counted.
#[derive(Debug, Default)]
pub struct Busiest(Vec<(u64, Busy)>);

impl Busiest {
    /// Counts one of that key. `shown` names it, and is asked when it is new here.
    pub fn count(&mut self, key: u64, shown: impl FnOnce() -> String) {
        if let Some((_, busy)) = self.0.iter_mut().find(|(known, _)| *known == key) {
            busy.count += 1;
            return;
        }
        let name = shown().chars().take(LONGEST).collect();
        if self.0.len() < MOST {
            self.0.push((key, Busy { key: name, count: 1 }));
        } else if let Some(least) = self.0.iter_mut().min_by_key(|(_, busy)| busy.count) {
            *least = (key, Busy { key: name, count: least.1.count + 1 });
        }
    }

    /// All of them, the busiest first.
    pub fn shown(&self) -> Vec<Busy> {
        let mut all: Vec<Busy> = self.0.iter().map(|(_, busy)| busy.clone()).collect();
        all.sort_by(|one, other| other.count.cmp(&one.count).then_with(|| one.key.cmp(&other.key)));
        all
    }
}
