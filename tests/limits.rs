//! Limits of rules, and users that aren't there: the error says which, and where.

use crate::common::{Workspace, have};

#[test]
fn a_failure_names_the_limit_that_was_hit_or_may_have_been() {
    if !have(&["busybox"]) {
        return;
    }
    for (rule, told) in [
        // Without a limit of its own, a terabyte of holes is not read for an hour.
        ("run = 'truncate -s 1024G /big'", "went over its limit of file_size"),
        ("run = 'truncate -s 2M /big', limits = {'file_size': '1M'}", "went over its limit of file_size"),
        ("run = 'sleep 100', limits = {'time': 1}", "went over its limit of time"),
        (
            "run = 'dd if=/dev/zero of=/dev/null bs=500M count=1', limits = {'memory': '64M'}",
            "may have hit its limit of memory, 67108864",
        ),
        ("run = 'kill -9 $$', limits = {'processes': 400}", "may have hit its limit of processes, 400"),
    ] {
        let workspace = Workspace::tiny();
        workspace.file("app/build.star", format!("rule('build', deps = ['//base:build'], {rule})\n"));
        workspace.run("build //app:build").failure(1).stderr_has(told).stderr_has("app/build.star:1");
    }
    let workspace = Workspace::tiny();
    let rules = "rule('big', deps = ['//base:build'], run = 'truncate -s 1G /big; rm /big')\n\
        rule('plain', deps = ['//base:build'], run = 'false')\n";
    workspace.file("app/build.star", rules);
    workspace.run("build //app:big").success();
    workspace.run("build //app:plain").failure(1).says_not("its limit of");
}

#[test]
fn a_user_that_is_not_in_the_snapshot_is_told_with_its_line() {
    if !have(&["busybox"]) {
        return;
    }
    let workspace = Workspace::tiny();
    let rules = "rule('first', deps = ['//base:build'], run = 'true')\n\
        rule('build', deps = [':first'], user = 'postgres', run = 'true')\n";
    workspace.file("app/build.star", rules);
    let refused = workspace.run("build //app:build").failure(2).stderr_has("no user is named \"postgres\"");
    refused.stderr_has("app/build.star:2").stderr_has("//app:build");
}
