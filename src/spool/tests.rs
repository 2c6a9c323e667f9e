//! Queues, their files, and what all of them may have together.

use super::*;

struct Rig {
    spools: Spools,
    used: Arc<InSpool>,
    budget: Arc<Budget>,
    settings: Arc<Settings>,
    folder: tempfile::TempDir,
}

impl Rig {
    fn new(limit: u64) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let used = Arc::new(InSpool::default());
        let spool_dir = Some(folder.path().to_owned());
        let mut settings = Settings::for_test();
        (settings.stores.spool_bytes, settings.stores.spool_dir) = (limit, spool_dir);
        let (spools, budget) = (Spools::new(used.clone()), Budget::new(64 << 20));
        Rig { spools, used, budget, settings: Arc::new(settings), folder }
    }

    fn queue(&self) -> Queue {
        Queue::new(&self.spools, &self.budget)
    }

    /// Has what waits in memory written.
    fn write(&self, queue: &mut Queue) -> Result<Told, Option<io::Error>> {
        let job = queue.write(&self.settings, true).unwrap().unwrap();
        assert!(queue.write(&self.settings, true).is_none(), "one piece at a time");
        let done = job.run();
        queue.told(Some(done))
    }
}

/// Takes what comes next, read from the file where need be.
fn take(queue: &mut Queue, most: usize) -> Option<Vec<u8>> {
    match queue.front(most) {
        Front::Nothing => None,
        Front::Memory(piece) => Some(piece.to_vec()),
        Front::File(job) => {
            assert!(matches!(queue.front(most), Front::Busy), "one piece at a time");
            match queue.told(Some(job.run())) {
                Ok(Told::Bytes(piece)) => Some(piece.to_vec()),
                other => panic!("{other:?}"),
            }
        }
        Front::Busy => panic!("no helper is at it"),
    }
}

#[test]
fn bytes_come_back_in_their_order_and_all_is_given_back() {
    let rig = Rig::new(1 << 20);
    let mut queue = rig.queue();
    queue.push(b"never in a file");
    assert!(queue.write(&rig.settings, false).is_none(), "more may come");
    assert_eq!(take(&mut queue, 100).unwrap(), b"never in a file");
    assert_eq!(take(&mut queue, 100), None);
    assert!(rig.queue().into_store().is_none(), "there is nothing to close");
    for piece in [&b"one "[..], b"two ", b"three "] {
        queue.push(piece);
        rig.write(&mut queue).unwrap();
    }
    queue.push(b"four");
    assert_eq!((queue.len(), rig.used.bytes(), queue.is_in_memory()), (18, 14, false));
    assert_eq!(fs::read_dir(rig.folder.path()).unwrap().count(), 0, "its file has no name");
    let mut all = Vec::new();
    while let Some(bytes) = take(&mut queue, 5) {
        all.extend(bytes);
    }
    assert_eq!(all, b"one two three four");
    // Read to its end, the file is used again from its begin.
    queue.push(b"again");
    rig.write(&mut queue).unwrap();
    assert_eq!((take(&mut queue, 100).unwrap(), rig.used.bytes()), (b"again".to_vec(), 14));
    drop(queue.into_store().expect("it has a file"));
    assert_eq!((rig.used.bytes(), rig.budget.used(), rig.spools.0.gathered.load(Ordering::Relaxed)), (0, 0, 0));
}

#[test]
fn the_framing_of_chunks_is_no_data() {
    let rig = Rig::new(1 << 20);
    let mut queue = rig.queue();
    assert_eq!(queue.data(), 0);
    for _ in 0..100 {
        queue.push_run(b"x", true);
    }
    rig.write(&mut queue).unwrap();
    queue.push_framed(&b"1\r\nx\r\n".repeat(100), 100);
    assert_eq!((queue.len(), queue.data()), (1200, 200));
    take(&mut queue, 300).unwrap();
    assert_eq!((queue.len(), queue.data()), (900, 150));
    let mut bare = rig.queue();
    bare.push_run(b"bare", false);
    assert_eq!(bare.data(), 4);
}

#[test]
fn what_is_kept_can_be_read_again() {
    let rig = Rig::new(1 << 20);
    let mut queue = Queue::keeping(&rig.spools, &rig.budget);
    for piece in [&b"one "[..], b"two "] {
        queue.push(piece);
        rig.write(&mut queue).unwrap();
    }
    queue.push(b"three");
    assert!(!queue.is_in_memory());
    for _ in 0..2 {
        let mut all = Vec::new();
        while let Some(bytes) = take(&mut queue, 3) {
            all.extend(bytes);
        }
        assert_eq!((&all[..], queue.len()), (&b"one two three"[..], 0));
        queue.rewind();
        assert_eq!(queue.len(), 13);
    }
    // What is read while it is wound back was for somebody who is gone.
    let Front::File(job) = queue.front(3) else { panic!("it is in the file") };
    queue.rewind();
    assert!(matches!(queue.front(3), Front::Busy) && matches!(queue.told(Some(job.run())), Ok(Told::Nothing)));
    assert_eq!(take(&mut queue, 3).unwrap(), b"one");
    // Once what was in memory has been given back it stays there.
    while take(&mut queue, 100).is_some() {}
    assert!(queue.write(&rig.settings, true).is_none());
}

#[test]
fn what_the_disk_may_give_has_a_bound_and_each_queue_a_share_of_it() {
    let rig = Rig::new(400);
    let mut queues = [(); 5].map(|()| rig.queue());
    for (index, queue) in queues.iter_mut().enumerate() {
        queue.push(&[7; 101]);
        for first in [true, false] {
            let NoRoom { first: told } = queue.write(&rig.settings, true).unwrap().unwrap_err();
            assert_eq!(told, first, "more than a share");
        }
        drop(queue.take_tail());
        queue.push(&[7; 100]);
        let written = queue.write(&rig.settings, true).unwrap();
        assert_eq!(written.is_ok(), index < 4, "{index}");
    }
    assert_eq!(rig.used.bytes(), 400);
    drop(queues);
    assert_eq!(rig.used.bytes(), 0);
    assert!(rig.spools.has_room_for(100, 400) && !rig.spools.has_room_for(101, 400), "a share");
    assert!(rig.used.add(301, 400) && !rig.spools.has_room_for(100, 400), "others have the rest");
}

#[test]
fn of_many_that_begin_at_once_each_has_room_for_its_first_piece() {
    let rig = Rig::new(5 * FIRST);
    let begin = |limit| Queue::begin(&rig.spools, &rig.budget, limit);
    assert!(begin(SHARE * PIECE as u64 - 1).is_none(), "a share is less than a piece");
    assert_eq!(begin(SHARE * PIECE as u64).map(|_| ()), Some(()));
    assert_eq!(rig.used.bytes(), 0, "what was begun and left gives its room back");
    let mut queues: Vec<Queue> = std::iter::from_fn(|| begin(5 * FIRST)).collect();
    assert_eq!((queues.len(), rig.used.bytes()), (5, 5 * FIRST));
    for queue in &mut queues {
        queue.push(&[7; PIECE - 1]);
        queue.push(&[7; PIECE]);
        rig.write(queue).unwrap();
        take(queue, 2 * PIECE).unwrap();
        // And again, for the file is used from its begin.
        queue.push(&[7; 2 * PIECE]);
        rig.write(queue).unwrap();
    }
    queues.pop();
    assert!(begin(5 * FIRST).is_some(), "one has left");
}

#[test]
fn what_is_not_to_be_written_is_in_nobodys_way_and_waits_for_nobody() {
    let rig = Rig::new(4 * PIECE as u64);
    // Of one the disk has failed when a part was in the file, the other is at its share.
    let mut queues = [rig.queue(), rig.queue()];
    for queue in &mut queues {
        queue.push(&[7; PIECE]);
        rig.write(queue).unwrap();
        queue.push(&[7; PIECE]);
    }
    let [failed, refused] = &mut queues;
    failed.store.reserved.store(u64::MAX, Ordering::Relaxed);
    let job = failed.write(&rig.settings, true).unwrap().unwrap();
    failed.store.reserved.store(PIECE as u64, Ordering::Relaxed);
    let Work::Write(piece, _) = job.work else { panic!("it is to be written") };
    failed.told(Some(Done::NotWritten(piece, io::ErrorKind::StorageFull.into()))).unwrap();
    assert!(failed.is_full() && refused.write(&rig.settings, true).unwrap().is_err());
    let gathered = || rig.spools.0.gathered.load(Ordering::Relaxed);
    assert_eq!(gathered(), 0);
    // What had come is taken, and more comes.
    for queue in &mut queues {
        while take(queue, PIECE).is_some() {}
        queue.push(&[7; PIECE / 2]);
        _ = queue.write(&rig.settings, true).map(|written| queue.told(Some(written.unwrap().run())));
        assert_eq!(gathered(), 0);
    }
    let mut others = Vec::new();
    while rig.spools.may_gather(&rig.budget) {
        let mut queue = rig.queue();
        queue.push(&[7; PIECE]);
        others.push(queue);
    }
    let [failed, _] = &mut queues;
    assert!(failed.takes_more(), "it has to wait for its client alone");
    while take(failed, PIECE).is_some() {}
    assert!(failed.is_empty() && failed.takes_more());
    failed.push(&[7; PIECE]);
    assert!(!failed.takes_more());
}

#[test]
fn a_piece_that_cannot_be_written_comes_back_before_what_followed_it() {
    let mut rig = Rig::new(1 << 20);
    let mut queue = rig.queue();
    queue.push(b"written ");
    rig.write(&mut queue).unwrap();
    let gone = rig.folder.path().join("gone");
    Arc::get_mut(&mut rig.settings).unwrap().stores.spool_dir = Some(gone);
    let mut other = rig.queue();
    other.push(b"first ");
    let job = other.write(&rig.settings, true).unwrap().unwrap();
    other.push(b"second");
    let Told::Full(error) = other.told(Some(job.run())).unwrap() else { panic!("it was written") };
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(other.write(&rig.settings, true).is_none() && other.is_in_memory(), "it is not tried again");
    assert_eq!(take(&mut other, 100).unwrap(), b"first second");
    // One that has its file goes on with it.
    queue.push(b"too");
    rig.write(&mut queue).unwrap();
    assert_eq!(take(&mut queue, 100).unwrap(), b"written too");
    assert!(queue.told(None).is_err(), "a panic");
    queue.store.file.get().unwrap().set_len(0).unwrap();
    queue.push(b"lost");
    rig.write(&mut queue).unwrap();
    queue.store.file.get().unwrap().set_len(0).unwrap();
    let Front::File(job) = queue.front(100) else { panic!("it is in the file") };
    assert!(queue.told(Some(job.run())).is_err(), "it is not as long as it was");
}

#[test]
fn a_file_that_a_helper_opens_is_closed_by_one() {
    let rig = Rig::new(1 << 20);
    let mut queue = rig.queue();
    queue.push(b"written");
    let job = queue.write(&rig.settings, true).unwrap().unwrap();
    let store = queue.into_store().expect("it is about to be opened");
    assert!(matches!(job.run(), Done::Written) && store.file.get().is_some());
}

#[test]
fn memory_for_what_is_to_be_written_has_a_bound() {
    let rig = Rig::new(1 << 30);
    let mut queues = Vec::new();
    while rig.spools.may_gather(&rig.budget) {
        let mut queue = rig.queue();
        assert!(queue.takes_more());
        queue.push(&[7; PIECE]);
        assert!(!queue.takes_more(), "a piece is gathered");
        queues.push(queue);
    }
    assert!(!rig.queue().takes_more(), "others have all that there is");
    let most = rig.budget.limit() / GATHERED_SHARE;
    assert!(rig.budget.used() <= most && rig.budget.used() + PIECE > most);
    queues.pop().unwrap();
    let mut little = rig.queue();
    little.push(&[7; LEAST - 1]);
    assert!(rig.queue().takes_more(), "it may never be written");
    little.push(&[7; PIECE / 2]);
    assert!(!rig.queue().takes_more());
    drop((queues, little));
    assert!(rig.queue().takes_more());
    assert_eq!(rig.spools.0.gathered.load(Ordering::Relaxed), 0);
}

#[test]
fn a_file_that_needs_a_name_loses_it_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for way in [open as fn(&Path) -> _, open_and_unlink] {
        let file = way(folder.path()).unwrap();
        file.write_all_at(b"abc", 0).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(way(&folder.path().join("gone")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

#[test]
fn the_run_directory_holds_the_files_where_it_is_on_a_disk() {
    let of = |run_dir: &str, spool_dir: Option<&str>| {
        let mut settings = Settings::for_test();
        settings.process.run_dir = run_dir.into();
        settings.stores.spool_dir = spool_dir.map(PathBuf::from);
        directory(&settings)
    };
    assert_eq!(of("/a", Some("/b")), Path::new("/b"));
    assert_eq!(of("/", None), Path::new("/"));
    if cfg!(target_os = "linux") && is_in_memory(Path::new("/dev/shm")) {
        assert_eq!(of("/dev/shm", None), Path::new(ON_DISK));
    }
}
