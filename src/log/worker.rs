//! Which worker a line is of.

/// A worker as its lines name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerName<'a> {
    /// For people, and unlike that of any other worker: `web.G1.2`.
    pub label: &'a str,
    /// Its app's name.
    pub app: &'a str,
    /// Its number among the app's workers.
    pub id: u32,
    /// Its process; 0 when it is not known.
    pub pid: u32,
    /// Which generation of the app's code it runs.
    pub generation: u32,
}
