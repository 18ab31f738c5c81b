//! `examples/c/sqlite_vfs` under the stock sqlite3 shells of both widths.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use dmce_sys::pidfd::{self, Signal};
use dmce_tests::programs::{folder_of, other_client};
use dmce_tests::{Instance, cannot_run};
use libdmce::{Prot, RegionOptions};

use crate::toolchain::{self, SONAME, Scratch, root};

/// A shell that is installed, and the extension for its width.
struct Shell {
    command: Vec<String>,
    extension: PathBuf,
}

impl Shell {
    /// The shell for programs of 32 or 64 bits, if there is one.
    fn of(bits: u32, libraries: &Path, scratch: &Scratch) -> Option<Self> {
        let command = match bits {
            64 => "sqlite3".to_owned(),
            _ => env::var("DMCE_TEST_SQLITE32").ok()?,
        };
        let folder = scratch.path().join(format!("{bits}"));
        fs::create_dir_all(&folder).expect("the folder is ours");
        for name in ["libdmce.so", SONAME] {
            symlink(libraries.join("libdmce.so"), folder.join(name)).expect("the folder is new");
        }
        let extension = folder.join("sqlite_vfs.so");
        let mut build = Command::new(root().join("scripts/sqlite-vfs.sh"));
        build.arg(&folder).arg(&extension).args(["-Werror", "-pedantic"]);
        build.args((bits == 32).then_some("-m32"));
        toolchain::succeed(&mut build);
        let command = command.split_whitespace().map(str::to_owned).collect();
        Some(Self { command, extension })
    }

    /// The shell with an empty database open that only memory has.
    fn start(&self, instance: &Instance) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).args(["-batch", "-bail"]);
        command.env("DMCE_SOCKET", instance.socket());
        command
    }

    /// What brings a shell to a database in DMCE memory.
    fn opening(&self, database: &str) -> String {
        let separator = if database.ends_with('&') { "" } else { "?" };
        format!(
            ".load {}\n.open file:{database}{separator}vfs=dmce\n.timeout 60000\n",
            self.extension.display()
        )
    }

    /// Runs SQL on a database in DMCE memory; what it prints, or its complaint.
    fn try_run(&self, instance: &Instance, database: &str, sql: &str) -> Result<String, String> {
        finish(self.start(instance), &format!("{}{sql}\n", self.opening(database)))
    }

    fn run(&self, instance: &Instance, database: &str, sql: &str) -> String {
        self.try_run(instance, database, sql).unwrap_or_else(|text| panic!("{sql}: {text}"))
    }
}

/// The shell of this test's own width, and that of the other.
struct Shells {
    own: Shell,
    other: Option<Shell>,
    scratch: Scratch,
}

fn shells() -> Option<Shells> {
    let scratch = Scratch::new();
    let own_bits = if cfg!(target_pointer_width = "32") { 32 } else { 64 };
    let Some(own) = Shell::of(own_bits, &folder_of("dmce-ffi"), &scratch) else {
        cannot_run("DMCE_TEST_SQLITE32 names no 32-bit sqlite3 shell");
        return None;
    };
    // The library of the other width lies beside its test client.
    let libraries = other_client().and_then(|client| client.parent().map(Path::to_path_buf));
    let other = libraries.and_then(|libraries| Shell::of(96 - own_bits, &libraries, &scratch));
    if other.is_none() {
        cannot_run("there is no sqlite3 shell of the other width");
    }
    Some(Shells { own, other, scratch })
}

/// Gives a shell its input; what it prints, or its complaint.
fn finish(mut shell: Command, input: &str) -> Result<String, String> {
    let mut child = piped(&mut shell);
    let mut stdin = child.stdin.take().expect("it was piped");
    // A shell that gives up closes its input.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("the shell ends");
    let text = |bytes| String::from_utf8(bytes).expect("the shell prints text");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn piped(shell: &mut Command) -> Child {
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell.spawn().expect("the sqlite3 shell is installed, as scripts/requirements.sh sees to")
}

/// A shell that is in the middle of something.
struct Session {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    fn open(shell: &Shell, instance: &Instance, database: &str) -> Self {
        let mut child = piped(&mut shell.start(instance));
        let input = child.stdin.take().expect("it was piped");
        let output = BufReader::new(child.stdout.take().expect("it was piped"));
        let mut session = Self { child, input, output };
        session.tell(&shell.opening(database));
        session
    }

    fn tell(&mut self, sql: &str) {
        writeln!(self.input, "{sql}").expect("the shell reads");
    }

    /// Runs SQL that prints one line.
    fn line(&mut self, sql: &str) -> String {
        self.tell(sql);
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the shell prints text");
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: Signal) {
        let process = pidfd::open(self.child.id()).expect("the shell is a process");
        pidfd::signal(process.as_fd(), signal).expect("it is ours");
    }

    fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("a killed process ends");
    }

    /// Lets it come to its end; what else it printed.
    fn end(self) -> String {
        let Self { mut child, input, mut output } = self;
        drop(input);
        let mut rest = String::new();
        output.read_to_string(&mut rest).expect("the shell prints text");
        assert!(child.wait().expect("the shell ends").success());
        rest
    }
}

/// Tables, indexes, sorting beyond the cache, temporary tables, and all kinds of changes.
const WORK: &str = "
    pragma cache_size = 20;
    create table t(a integer primary key, b integer, c text);
    with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)
        insert into t select i, i * 7919 % 10007, printf('%0200d', i * 31 % 997) from n;
    create index tb on t(b);
    create temp table u as select c, count(*) k from t group by c order by k desc, c;
    select count(*), sum(k), max(c) from u;
    update t set c = c || b where b % 3 = 0;
    begin; delete from t where a % 2 = 0; savepoint s; update t set b = -b;
    rollback to s; commit;
    begin; update t set c = ''; delete from t where b > 100; rollback;
    select count(*), sum(b), sum(length(c)) from t;
    select a, b from t order by c desc, b limit 5;
    drop index tb; vacuum;
    select count(*) from t x join t y on x.b = y.a;
    pragma page_count;
    pragma integrity_check;
    select a from t where b between 500 and 510 order by a;";

#[test]
fn a_database_in_dmce_answers_as_one_in_a_file_does() {
    let Some(shells) = shells() else { return };
    let instance = Instance::start(2);
    let file = shells.scratch.path().join("t.db");
    let expected =
        finish(shells.own.start(&instance), &format!(".open {}\n{WORK}\n", file.display()));
    let answers = shells.own.run(&instance, "t.db", WORK);
    assert!(answers.contains("\nok\n"), "{answers}");
    assert_eq!(Ok(answers), expected);
    // It is there for whoever comes later, of whatever width.
    for shell in shells.other.iter().chain([&shells.own]) {
        assert_eq!(shell.run(&instance, "t.db", "select count(*) from t;"), "10000\n");
    }
}

#[test]
fn names_are_flat_and_what_is_not_there_is_not_made_by_readers() {
    let Some(shells) = shells() else { return };
    let own = &shells.own;
    let instance = Instance::start(1);
    own.run(&instance, "a%2fb.db", "create table t(x); insert into t values(1);");
    assert_eq!(own.run(&instance, "a%2fb.db", "select * from t;"), "1\n");
    // Names that look like those of the extension's own regions are as good as others.
    for name in [".d0-t.db", ".owner-1", "t.db"] {
        own.run(&instance, name, &format!("create table t(x); insert into t values('{name}');"));
    }
    for name in [".d0-t.db", ".owner-1", "t.db"] {
        assert_eq!(own.run(&instance, name, "select * from t;"), format!("{name}\n"));
    }
    own.try_run(&instance, "missing.db?mode=ro&", "select 1 from t;").unwrap_err();
    let names: Vec<_> = instance.regions().into_iter().map(|row| row.region.name).collect();
    assert!(names.iter().any(|name| name == "a%2fb.db"), "{names:?}");
    assert!(names.iter().all(|name| !name.starts_with("missing")), "{names:?}");
    // The shell goes on with a database in its own memory.
    let opened = own.try_run(&instance, &"x".repeat(200), "pragma database_list;");
    assert_eq!(opened, Ok("0|main|\n".to_owned()));
}

const ACCOUNTS: &str = "create table account(id integer primary key, amount integer, pad text);
    with recursive n(i) as (select 0 union all select i + 1 from n where i < 999)
        insert into account select i, 1000, printf('%0300d', i) from n;";
const SUM: &str = "select count(*), sum(amount) from account;";
const UNCHANGED: &str = "1000|1000000";

/// A transaction that touches so many pages that some are written before it is committed.
fn transfer(from: u32, to: u32) -> String {
    format!(
        "pragma cache_size = 5; begin immediate;
         update account set amount = amount - 5, pad = printf('%0300d', {from})
             where id between {from} and {from} + 99;
         update account set amount = amount + 500 where id = {to};"
    )
}

#[test]
fn shells_of_both_widths_write_and_read_the_same_database() {
    let Some(shells) = shells() else { return };
    let Shells { own, other: Some(other), .. } = &shells else { return };
    let instance = Instance::start(2);
    own.run(&instance, "bank.db", ACCOUNTS);
    let mut writers = [own, other].map(|shell| Session::open(shell, &instance, "bank.db"));
    for round in 0..100 {
        for (place, writer) in (0..).zip(&mut writers) {
            writer.tell(&transfer(round * 9 % 900, (round * 31 + place) % 1000));
            writer.tell("commit;");
        }
    }
    let mut readers = [other, own].map(|shell| Session::open(shell, &instance, "bank.db"));
    for _ in 0..100 {
        for reader in &mut readers {
            assert_eq!(reader.line(SUM), UNCHANGED);
        }
    }
    for session in writers.into_iter().chain(readers) {
        assert_eq!(session.end(), "");
    }
    let after = own.run(&instance, "bank.db", &format!("{SUM} pragma integrity_check;"));
    assert_eq!(after, format!("{UNCHANGED}\nok\n"));
}

#[test]
fn a_writer_that_is_killed_is_undone_and_holds_nobody_up() {
    let Some(shells) = shells() else { return };
    let Shells { own, other, .. } = &shells;
    let instance = Instance::start(2);
    own.run(&instance, "bank.db", ACCOUNTS);
    for round in 0..5 {
        let mut writer = Session::open(own, &instance, "bank.db");
        writer.tell(&transfer(round * 100, 7));
        assert_eq!(writer.line("select 'changed';"), "changed");
        writer.kill();
        for shell in other.iter().chain([own]) {
            let after = shell.run(&instance, "bank.db", &format!("{SUM} pragma integrity_check;"));
            assert_eq!(after, format!("{UNCHANGED}\nok\n"));
        }
        // And the next one writes.
        own.run(&instance, "bank.db", &format!("{} commit;", transfer(round * 100, 8)));
    }
}

#[test]
fn a_writer_that_is_stopped_is_waited_for_and_readers_are_not_held_up() {
    let Some(shells) = shells() else { return };
    let own = &shells.own;
    let instance = Instance::start(1);
    own.run(&instance, "bank.db", ACCOUNTS);
    let mut writer = Session::open(own, &instance, "bank.db");
    writer.tell("begin immediate; update account set amount = amount + 1 where id = 1;");
    assert_eq!(writer.line("select 'changed';"), "changed");
    writer.signal(Signal::STOP);
    assert_eq!(own.run(&instance, "bank.db", SUM), format!("{UNCHANGED}\n"));
    let refused = own.try_run(&instance, "bank.db", ".timeout 50\nupdate account set amount = 0;");
    assert!(refused.clone().is_err_and(|text| text.contains("locked")), "{refused:?}");
    writer.signal(Signal::CONT);
    writer.tell("commit;");
    assert_eq!(writer.end(), "");
    assert_eq!(own.run(&instance, "bank.db", SUM), "1000|1000001\n");
}

#[test]
fn what_programs_leave_that_were_killed_is_removed() {
    let Some(shells) = shells() else { return };
    let own = &shells.own;
    let instance = Instance::start(1);
    own.run(&instance, "bank.db", ACCOUNTS);
    // More than have a place at one time.
    for _ in 0..45 {
        let mut reader = Session::open(own, &instance, "bank.db");
        assert_eq!(reader.line(&format!("begin; {SUM}")), UNCHANGED);
        reader.kill();
    }
    own.run(&instance, "bank.db", "update account set amount = 0;");
    let regions = instance.regions();
    assert!(regions.iter().all(|region| !region.region.name.starts_with(".owner-")), "{regions:?}");
}

/// A library that kills the program it is loaded into, of this test's own width.
fn kill_at(scratch: &Scratch) -> PathBuf {
    let library = scratch.path().join("kill_at.so");
    let source = root().join("tests/c/kill_at.c");
    let mut build = toolchain::compiler(&source);
    build.args(["-std=gnu11", "-shared", "-fPIC"]).args(toolchain::own_width());
    toolchain::succeed(build.arg(&source).arg("-o").arg(&library).arg("-ldl"));
    library
}

/// The writer is killed at every one of its steps, from the first that concerns both databases on.
#[test]
fn a_transaction_over_two_databases_is_whole_wherever_its_writer_is_killed() {
    let Some(shells) = shells() else { return };
    let own = &shells.own;
    let library = kill_at(&shells.scratch);
    let instance = Instance::start(1);
    let attach = "attach 'file:two.db?vfs=dmce' as two;";
    let make = format!(
        "{attach} create table t(x); insert into t values(0);
         create table two.u(x); insert into two.u values(0);"
    );
    own.run(&instance, "one.db", &make);
    let mut value = 0;
    for step in 1.. {
        let mut writer = own.start(&instance);
        writer.env("LD_PRELOAD", &library).env("DMCE_TEST_KILL_AT", step.to_string());
        let change = "begin; update t set x = x + 1; update u set x = x + 1; commit;";
        let done = finish(writer, &format!("{}{attach}{change}\n", own.opening("one.db")));
        let reader = shells.other.as_ref().filter(|_| step % 2 == 0).unwrap_or(own);
        // Now the first is rolled back before the second, and now with it.
        let (one, two) = if step % 3 == 0 {
            let one = reader.run(&instance, "one.db", "select x from t;");
            (one, reader.run(&instance, "two.db", "select x from u;"))
        } else {
            let select = format!("{attach} select x from t; select x from u;");
            let both = reader.run(&instance, "one.db", &select);
            let (one, two) = both.split_at(both.find('\n').map_or(0, |end| end + 1));
            (one.to_owned(), two.to_owned())
        };
        assert_eq!(one, two, "step {step}");
        let found: u32 = one.trim_end().parse().expect("a number");
        assert!(found == value || found == value + 1, "step {step}: {found} after {value}");
        value = found;
        let regions = instance.regions().into_iter().map(|row| row.region.name);
        let left: Vec<_> = regions.filter(|name| name.contains("-mj")).collect();
        assert!(left.is_empty(), "step {step}: {left:?}");
        if done.is_ok() {
            println!("killed at {} steps, of which {value} were committed", step - 1);
            assert!(value > 1, "some were killed after the transaction was committed");
            break;
        }
    }
    for database in ["one.db", "two.db"] {
        assert_eq!(own.run(&instance, database, "pragma integrity_check;"), "ok\n");
    }
}

const JOURNAL_MODE: &str = "pragma journal_mode;";

/// A write-ahead log would lock everybody else out, in exclusive locking mode, and for ever.
#[test]
fn no_locking_mode_gives_a_database_a_write_ahead_log() {
    let Some(shells) = shells() else { return };
    let own = &shells.own;
    let instance = Instance::start(1);
    for (locking, database) in [("normal", "n.db"), ("exclusive", "e.db")] {
        let mut writer = Session::open(own, &instance, database);
        writer.tell("create table t(x);");
        assert_eq!(writer.line(&format!("pragma locking_mode = {locking};")), locking);
        for mode in ["delete", "truncate", "persist"] {
            assert_eq!(writer.line(&format!("pragma journal_mode = {mode};")), mode);
            for asked in ["wal", "WAL", "'wal'", "w"] {
                assert_eq!(writer.line(&format!("pragma main.journal_mode = {asked};")), mode);
            }
            assert_eq!(writer.line(JOURNAL_MODE), mode);
        }
        writer.tell("insert into t values(1);");
        assert_eq!(writer.line("select count(*) from t;"), "1");
        writer.kill();
        let after = own.run(&instance, database, &format!("select * from t; {JOURNAL_MODE}"));
        assert_eq!(after, "1\ndelete\n");
    }
    let regions = instance.regions();
    assert!(regions.iter().all(|row| !row.region.name.ends_with("-wal")), "{regions:?}");
}

/// Where the extension is not asked first: when the mode is changed already, and in the middle of a
/// copy of a database that has a write-ahead log.
#[test]
fn what_would_begin_a_write_ahead_log_is_rolled_back() {
    let Some(shells) = shells() else { return };
    let own = &shells.own;
    let instance = Instance::start(1);
    own.run(&instance, "t.db", "create table t(x); insert into t values(1);");
    let disk = shells.scratch.path().join("wal.db");
    let attach = format!(
        ".log stdout\n.load {}\n.open {}\nattach 'file:t.db?vfs=dmce' as d;\n",
        own.extension.display(),
        disk.display()
    );
    let asked = "pragma locking_mode = exclusive; pragma journal_mode = wal;";
    let refused = finish(own.start(&instance), &format!("{attach}{asked}\n"));
    assert!(refused.clone().is_err_and(|text| text.contains("disk I/O error")), "{refused:?}");
    assert_eq!(own.run(&instance, "t.db", "select * from t; insert into t values(2);"), "1\n");

    // The one on the disk may have one, and is in that mode then.
    let asked = "pragma journal_mode = wal; create table t(x);";
    let changed = finish(own.start(&instance), &format!("{attach}{asked}\n"));
    assert_eq!(changed, Ok("wal\n".to_owned()));
    let restored = own.try_run(&instance, "t.db", &format!(".restore {}", disk.display()));
    assert!(restored.clone().is_err_and(|text| text.contains("disk I/O error")), "{restored:?}");
    assert_eq!(
        own.run(&instance, "t.db", "select * from t; pragma integrity_check;"),
        "1\n2\nok\n"
    );
}

/// What the shell says when a database does not open, and what its log says.
fn told_at_opening(shell: &Shell, instance: &Instance, database: &str) -> String {
    let opening = shell.opening(database);
    let told = finish(shell.start(instance), &format!(".log stdout\n{opening}"));
    told.unwrap_or_else(|text| panic!("{database}: {text}"))
}

#[test]
fn what_cannot_be_opened_is_told_with_its_reason() {
    let Some(shells) = shells() else { return };
    let own = &shells.own;
    let instance = Instance::start(1);
    let longest = "x".repeat(119);
    own.run(&instance, &longest, "create table t(x);");
    let told = told_at_opening(own, &instance, &format!("{longest}y"));
    assert!(told.contains("is no name of 1 to 119 bytes"), "{told}");

    own.run(&instance, "t.db", "create table t(x); insert into t values(1);");
    let mut readers: Vec<_> = (0..40).map(|_| Session::open(own, &instance, "t.db")).collect();
    for reader in &mut readers {
        assert_eq!(reader.line("select x from t;"), "1");
    }
    let told = told_at_opening(own, &instance, "t.db");
    assert!(told.contains("t.db has 40 connections, limit 40"), "{told}");
    for reader in readers {
        assert_eq!(reader.end(), "");
    }
    assert_eq!(told_at_opening(own, &instance, "t.db"), "");

    // Written by something else than this extension.
    let session = instance.open();
    let first = session.region_open("sqlite", ".d0-t.db", Prot::READ | Prot::WRITE).unwrap();
    let header = first.addr(18).unwrap();
    session.write(header, &[2, 2]).unwrap();
    let told = told_at_opening(own, &instance, "t.db");
    assert!(told.contains("t.db is in WAL mode, which cannot be here"), "{told}");
}

/// Readers write the word that locks the database.
#[test]
fn who_may_only_read_a_region_is_told_that_it_is_not_enough() {
    let Some(shells) = shells() else { return };
    if dmce_sys::identity::effective_uid() != 0 {
        cannot_run("only root can start a shell of another user");
        return;
    }
    let instance = Instance::builder().config("broker.socket_mode = \"0666\"\n").start();
    let readable = RegionOptions { mode: 0o644, ..RegionOptions::default() };
    instance.open().region_create("sqlite", "t.db", 4096, &readable).unwrap();
    shells.own.run(&instance, "t.db", "create table t(x);");
    // Nobody may not enter the folder of the build.
    let extension = instance.dir().join("sqlite_vfs.so");
    fs::copy(&shells.own.extension, &extension).expect("the folder is ours");
    let library = shells.own.extension.with_file_name(SONAME);
    fs::copy(library, instance.dir().join(SONAME)).expect("the folder is ours");
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let command = nobody.map(str::to_owned).into_iter().chain(shells.own.command.clone());
    let nobody = Shell { command: command.collect(), extension };
    let mut shell = nobody.start(&instance);
    shell.env("LD_LIBRARY_PATH", instance.dir());
    let opening = nobody.opening("t.db?mode=ro&");
    let told = finish(shell, &format!(".log stdout\n{opening}")).expect("the shell goes on");
    assert!(told.contains("t.db: this user may not write it, and who reads writes"), "{told}");
}

/// As `sqlite_vfs.h` says.
#[test]
fn databases_go_to_a_disk_and_come_from_it() {
    let Some(shells) = shells() else { return };
    let own = &shells.own;
    let instance = Instance::start(1);
    let place = |name: &str| shells.scratch.path().join(name).display().to_string();
    let [backup, vacuumed, attached, inside] = ["b.db", "v.db", "a.db", "inside.db"].map(place);
    let export = format!(
        "create table t(x); insert into t values(7);
.backup {backup}
vacuum into 'file:{vacuumed}?vfs=unix';
attach 'file:{attached}?vfs=unix' as disk; create table disk.t as select * from t;
vacuum into '{inside}';"
    );
    own.run(&instance, "t.db", &export);
    for path in [&backup, &vacuumed, &attached] {
        let found = finish(own.start(&instance), &format!(".open {path}\nselect x from t;\n"));
        assert_eq!(found, Ok("7\n".to_owned()), "{path}");
    }
    assert!(!Path::new(&inside).exists(), "a name without a file system is one of DMCE");
    assert_eq!(own.run(&instance, &inside, "select x from t;"), "7\n");
    let import = format!(".restore {backup}\nselect x from t;");
    assert_eq!(own.run(&instance, "u.db", &import), "7\n");
}

/// The volume has its usual name if the variable is empty.
#[test]
fn a_volume_without_a_name_is_the_usual_one() {
    let Some(shells) = shells() else { return };
    let instance = Instance::start(1);
    let mut shell = shells.own.start(&instance);
    shell.env("DMCE_SQLITE_VOLUME", "");
    let made = finish(shell, &format!("{}create table t(x);\n", shells.own.opening("t.db")));
    assert_eq!(made, Ok(String::new()));
    assert_eq!(shells.own.run(&instance, "t.db", "select count(*) from t;"), "0\n");
}

/// A database whose name looks like that of a super-journal is left as it is.
#[test]
fn a_database_that_is_named_like_a_super_journal_is_none() {
    let Some(shells) = shells() else { return };
    let instance = Instance::start(1);
    let database = "t.db-mj0123459AB";
    shells.own.run(&instance, database, "create table t(x); insert into t values(7);");
    assert_eq!(shells.own.run(&instance, database, "select x from t;"), "7\n");
}
