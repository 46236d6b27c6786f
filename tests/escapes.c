// Attempts to leave a rule's sandbox, each named after what it tries. One that succeeds returns 1.
// A static program: the snapshot that it runs in has no library.
//
// escapes SECRET ABSTRACT PORT PID STORE MARK [NAME...]: a file of the host, a socket in its abstract namespace, a port of its
// loopback, a process, the store, and a word that stands in the command line and environment of what started us. With names, those attempts alone.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/netlink.h>
#include <linux/reboot.h>
#include <linux/seccomp.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static const char *secret, *abstract, *port, *host_pid, *store, *mark;
static pid_t init;

static int opens(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK);
    return fd >= 0;
}
// Whether a byte can be read that is not zero.
static int tells(const char *path) {
    char text[4096];
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    if (fd < 0) return 0;
    ssize_t n = read(fd, text, sizeof text);
    for (ssize_t i = 0; i < n; i++) if (text[i]) return 1;
    return 0;
}
static int says(const char *path, const char *word) {
    static char text[1 << 20];
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    if (fd < 0) return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    return n > 0 && memmem(text, n, word, strlen(word)) != NULL;
}
static int below(const char *root) {
    char path[8192];
    snprintf(path, sizeof path, "%s%s", root, secret);
    return opens(path, O_RDONLY);
}
// A user namespace in which this process has every capability, and what else is asked for.
static int own(int flags) {
    if (unshare(CLONE_NEWUSER | flags)) return 0;
    return 1;
}

static int read_a_host_file_by_its_path(void) { return opens(secret, O_RDONLY); }
static int read_a_host_file_above_the_root(void) { return below("/../../../.."); }
static int read_a_host_file_through_the_root_of_init(void) { return below("/proc/1/root") || opens("/proc/1/root/", O_PATH | O_DIRECTORY); }
static int read_a_host_file_through_the_folder_of_init(void) { return below("/proc/1/cwd") || below("/proc/1/cwd/../../.."); }
static int read_a_host_file_through_another_process(void) {
    char path[64];
    for (int pid = 1; pid < 64; pid++) {
        snprintf(path, sizeof path, "/proc/%d/root", pid);
        if (below(path)) return 1;
    }
    return 0;
}
static int read_the_store(void) { return opens(store, O_RDONLY | O_DIRECTORY); }
static int leave_a_changed_root_by_an_open_folder(void) {
    int fd = open("/", O_RDONLY | O_DIRECTORY);
    mkdir("/tmp/cage", 0755);
    if (chroot("/tmp/cage") || fchdir(fd)) return 0;
    for (int i = 0; i < 64; i++) if (chdir("..")) break;
    return chroot(".") == 0 && opens(secret, O_RDONLY);
}
static int pivot_back_to_the_old_root(void) {
    if (!own(CLONE_NEWNS)) return 0;
    if (chdir("/") || syscall(SYS_pivot_root, ".", ".")) return 0;
    umount2(".", MNT_DETACH);
    return opens(secret, O_RDONLY) || below("..");
}
static int unmount_the_root_to_see_what_is_below(void) { return own(CLONE_NEWNS) && umount2("/", MNT_DETACH) == 0 && opens(secret, O_RDONLY); }
static int open_by_handle_what_no_path_leads_to(void) {
    struct { struct file_handle h; char bytes[128]; } handle = {.h.handle_bytes = 128};
    int id, fd = open("/", O_RDONLY | O_DIRECTORY);
    if (name_to_handle_at(fd, "", &handle.h, &id, AT_EMPTY_PATH)) { handle.h.handle_bytes = 8; handle.h.handle_type = 1; }
    memset(handle.h.f_handle, 0, 8); handle.h.f_handle[0] = 2;
    return open_by_handle_at(fd, &handle.h, O_RDONLY) >= 0 || (errno != EPERM);
}

static int open_a_descriptor_of_init(void) {
    char path[64];
    for (int i = 0; i < 64; i++) {
        snprintf(path, sizeof path, "/proc/1/fd/%d", i);
        if (opens(path, O_RDONLY) || opens(path, O_PATH) || opens(path, O_WRONLY)) return 1;
    }
    return 0;
}
static int take_a_descriptor_of_init(void) {
    int open = syscall(SYS_pidfd_open, init, 0);
    for (int i = 0; i < 64; i++) if (open >= 0 && syscall(SYS_pidfd_getfd, open, i, 0) >= 0) return 1;
    return 0;
}
static int inherit_a_descriptor_of_the_host(void) {
    for (int i = 3; i < 1024; i++) if (fcntl(i, F_GETFD) >= 0) return 1;
    return 0;
}
static int trace_init(void) { return ptrace(PTRACE_ATTACH, init, 0, 0) == 0 || ptrace(PTRACE_SEIZE, init, 0, 0) == 0; }
static int trace_init_from_a_namespace_of_its_own(void) { return own(0) && trace_init(); }
static int read_the_memory_of_init(void) { return opens("/proc/1/mem", O_RDONLY); }
static int write_the_memory_of_init(void) { return opens("/proc/1/mem", O_RDWR); }
static int read_the_memory_of_init_by_a_call(void) {
    char byte;
    struct iovec here = {&byte, 1}, there = {(void *)0x400000, 1};
    return process_vm_readv(init, &here, 1, &there, 1, 0) >= 0 || errno != EPERM;
}
static int write_the_memory_of_init_by_a_call(void) {
    char byte = 0;
    struct iovec here = {&byte, 1}, there = {(void *)0x400000, 1};
    return process_vm_writev(init, &here, 1, &there, 1, 0) >= 0 || errno != EPERM;
}
static int read_where_the_memory_of_init_is(void) { return tells("/proc/1/maps") || tells("/proc/1/auxv"); }
static int read_the_environment_of_init(void) { return tells("/proc/1/environ"); }
static int read_the_executable_of_init(void) { char path[4096]; return readlink("/proc/1/exe", path, sizeof path) >= 0 || opens("/proc/1/exe", O_RDONLY); }
static int write_the_executable_of_init(void) { return opens("/proc/1/exe", O_WRONLY) || truncate("/proc/1/exe", 0) == 0; }
static int enter_the_namespaces_of_init(void) {
    const char *names[] = {"mnt", "user", "pid", "net", "ipc", "uts", "cgroup"};
    char path[64];
    for (int i = 0; i < 7; i++) {
        snprintf(path, sizeof path, "/proc/1/ns/%s", names[i]);
        int fd = open(path, O_RDONLY);
        if (fd >= 0 && setns(fd, 0) == 0) return 1;
    }
    return 0;
}
static int enter_the_namespaces_of_init_by_its_number(void) {
    int init = syscall(SYS_pidfd_open, 1, 0);
    return init >= 0 && (setns(init, CLONE_NEWNS) == 0 || setns(init, CLONE_NEWUSER) == 0);
}
static int end_or_stop_init(void) {
    int init = syscall(SYS_pidfd_open, 1, 0);
    kill(1, SIGKILL); kill(1, SIGSTOP); kill(1, SIGSEGV); syscall(SYS_tgkill, 1, 1, SIGABRT);
    syscall(SYS_pidfd_send_signal, init, SIGKILL, NULL, 0);
    // Nobody is alive to say so when it worked; a stopped one wouldn't answer this.
    usleep(50000);
    return chown("/tmp", 33, 33) != 0;
}
static int have_others_killed_for_memory(void) {
    int self = open("/proc/self/oom_score_adj", O_WRONLY), init = open("/proc/1/oom_score_adj", O_WRONLY);
    return write(self, "-1000", 5) == 5 || write(init, "-1000", 5) == 5;
}

static int unmount_a_mask(void) {
    return umount2("/proc/sys", MNT_DETACH) == 0 || umount2("/proc/kcore", MNT_DETACH) == 0 || umount2("/proc", MNT_DETACH) == 0;
}
static int unmount_a_mask_in_namespaces_of_its_own(void) { return own(CLONE_NEWNS) && unmount_a_mask(); }
static int remount_proc_sys_writable(void) {
    return mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL) == 0;
}
static int remount_proc_sys_writable_in_namespaces_of_its_own(void) { return own(CLONE_NEWNS) && remount_proc_sys_writable(); }
static int see_below_the_masks_by_a_bind(void) {
    mkdir("/tmp/bind", 0755);
    return own(CLONE_NEWNS) && mount("/proc", "/tmp/bind", NULL, MS_BIND, NULL) == 0 && tells("/tmp/bind/kcore");
}
static int see_below_the_masks_by_a_copy_of_the_tree(void) {
    if (!own(CLONE_NEWNS)) return 0;
    return syscall(SYS_open_tree, AT_FDCWD, "/proc", 1 /* OPEN_TREE_CLONE */) >= 0;
}
static int mount_a_fresh_proc(void) {
    if (!own(CLONE_NEWNS | CLONE_NEWPID)) return 0;
    pid_t child = fork();
    if (child == 0) {
        mkdir("/tmp/proc", 0755);
        _exit(mount("proc", "/tmp/proc", "proc", 0, NULL) == 0 && opens("/tmp/proc/sys/kernel/core_pattern", O_WRONLY));
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WEXITSTATUS(status);
}
static int mount_a_fresh_sys(void) { mkdir("/tmp/sys", 0755); return own(CLONE_NEWNS | CLONE_NEWNET) && mount("sysfs", "/tmp/sys", "sysfs", 0, NULL) == 0; }
static int mount_control_groups(void) {
    mkdir("/tmp/cgroup", 0755);
    return own(CLONE_NEWNS) && (unshare(CLONE_NEWCGROUP) == 0 || mount("none", "/tmp/cgroup", "cgroup2", 0, NULL) == 0);
}
static int mount_file_systems_of_the_kernel(void) {
    const char *types[] = {"debugfs", "tracefs", "securityfs", "configfs", "devtmpfs", "pstore", "efivarfs", "cgroup", "nfsd", "resctrl"};
    mkdir("/tmp/kernel", 0755);
    if (!own(CLONE_NEWNS)) return 0;
    for (int i = 0; i < 10; i++) if (mount("none", "/tmp/kernel", types[i], 0, NULL) == 0) return 1;
    return 0;
}
static int mount_without_a_namespace_of_its_own(void) { return mount("none", "/tmp", "tmpfs", 0, NULL) == 0; }
static int gain_the_capability_to_mount(void) {
    struct { unsigned version; int pid; } head = {0x20080522, 0};
    unsigned sets[6] = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u};
    syscall(SYS_capset, &head, sets);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 21, 0, 0);
    return prctl(PR_CAPBSET_READ, 21) == 1 || mount("none", "/tmp", "tmpfs", 0, NULL) == 0;
}
static int gain_new_privileges_by_a_set_id_program(void) { prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0); return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1; }

static int disk(const char *path) {
    unlink(path);
    for (int major_number = 1; major_number < 260; major_number++) {
        if (mknod(path, S_IFBLK | 0600, makedev(major_number, 0)) == 0 && tells(path)) return 1;
        unlink(path);
    }
    return 0;
}
static int make_a_disk_and_read_it(void) { return disk("/opt/disk"); }
static int make_a_disk_in_namespaces_of_its_own(void) { return own(CLONE_NEWNS) && mount("none", "/tmp", "tmpfs", 0, NULL) == 0 && disk("/tmp/disk"); }
static int make_the_memory_of_the_machine(void) {
    return (mknod("/opt/mem", S_IFCHR | 0600, makedev(1, 1)) == 0 && tells("/opt/mem")) || opens("/dev/mem", O_RDONLY) || opens("/dev/port", O_RDONLY);
}
static int open_other_devices(void) {
    const char *names[] = {"kmsg", "kvm", "fuse", "net/tun", "sda", "vda", "nvme0n1", "loop-control", "uinput", "vhost-vsock", "userfaultfd", "console"};
    char path[64];
    for (int i = 0; i < 12; i++) { snprintf(path, sizeof path, "/dev/%s", names[i]); if (opens(path, O_RDONLY)) return 1; }
    return 0;
}
static int forge_a_whiteout(void) { struct stat s; return mknod("/opt/whiteout", S_IFCHR, 0) == 0 && stat("/opt/whiteout", &s) == 0 && S_ISCHR(s.st_mode); }
static int forge_an_attribute_of_the_overlay(void) {
    mkdir("/opt/forged", 0755);
    setxattr("/opt/forged", "user.overlay.redirect", secret, strlen(secret), 0);
    setxattr("/opt/forged", "user.overlay.opaque", "y", 1, 0);
    setxattr("/opt/forged", "trusted.overlay.redirect", secret, strlen(secret), 0);
    int fd = open("/opt/copied", O_CREAT | O_WRONLY, 0644);
    fsetxattr(fd, "user.overlay.metacopy", "", 0, 0);
    fsetxattr(fd, "user.overlay.redirect", secret, strlen(secret), 0);
    // What comes of it is seen by the next rule.
    return setxattr("/opt/forged", "trusted.overlay.opaque", "y", 1, 0) == 0;
}

static int read_a_session_key(void) { return syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0) >= 0 || errno != EPERM; }
static int add_a_key(void) { return syscall(SYS_add_key, "user", "x", "x", 1, KEY_SPEC_USER_KEYRING) >= 0 || errno != EPERM; }
static int request_a_key(void) { syscall(SYS_request_key, "user", "x", NULL, 0); return errno != EPERM; }
static int load_a_program_into_the_kernel(void) { return syscall(SYS_bpf, 0, "", 0) >= 0 || errno != EPERM; }
static int measure_the_machine(void) { syscall(SYS_perf_event_open, "", 0, -1, -1, 0); return errno != EPERM; }
static int use_a_ring_that_passes_no_filter(void) { char p[256] = {0}; return syscall(SYS_io_uring_setup, 1, p) >= 0 || errno != ENOSYS; }
static int hold_the_kernel_still(void) { return syscall(SYS_userfaultfd, 1) >= 0 || errno != EPERM; }
static int load_another_kernel(void) {
    syscall(SYS_kexec_load, 0, 0, NULL, 0);
    int first = errno;
    syscall(SYS_kexec_file_load, -1, -1, 0, "", 0);
    return first != EPERM || errno != EPERM;
}
static int load_a_module(void) { syscall(SYS_init_module, "", 0, ""); int first = errno; syscall(SYS_finit_module, -1, "", 0); return first != EPERM || errno != EPERM; }
static int restart_the_machine(void) { syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_CAD_OFF, 0); return errno != EPERM; }
static int read_the_log_of_the_kernel(void) { char text[64]; return syscall(SYS_syslog, 3, text, sizeof text) >= 0 || errno != EPERM; }
static int change_the_clock(void) {
    struct timespec t = {0, 0};
    struct timeval v = {0, 0};
    struct timex x = {.modes = ADJ_STATUS};
    return clock_settime(CLOCK_REALTIME, &t) == 0 || settimeofday(&v, NULL) == 0 || adjtimex(&x) >= 0;
}
static int turn_swap_and_accounting_on(void) { return swapon("/opt/none", 0) == 0 || errno != EPERM || acct("/opt/none") == 0 || errno != EPERM; }
static int watch_every_file(void) { return fanotify_init(FAN_CLASS_PRE_CONTENT, O_RDONLY) >= 0; }
static int touch_the_ports_of_the_hardware(void) { return syscall(SYS_iopl, 3) == 0 || syscall(SYS_ioperm, 0x70, 2, 1) == 0; }
static int type_into_the_terminal(void) { char c = '\n'; return ioctl(0, TIOCSTI, &c) == 0 || errno != EPERM; }
static int paste_into_the_console(void) { char c = 3; return ioctl(0, TIOCLINUX, &c) == 0 || errno != EPERM; }
static int have_a_terminal(void) { return isatty(0) || isatty(1) || isatty(2) || opens("/dev/tty", O_RDWR); }
static int make_a_call_of_32_bits(void) {
#ifdef __x86_64__
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(288L), "b"(0L), "c"(-3L), "d"(0L) : "memory"); // keyctl
    return result >= 0 || result == -ENOKEY;
#else
    return 0;
#endif
}
static int make_an_x32_call(void) { return syscall(0x40000000 | SYS_keyctl, 0, -3, 0) >= 0; }
static int listen_to_calls_before_init(void) {
    struct sock_filter all[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF)};
    struct sock_fprog program = {1, all};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program) >= 0;
}

static int speak_to_the_hypervisor(void) { return socket(AF_VSOCK, SOCK_STREAM, 0) >= 0; }
static int write_raw_frames(void) { return socket(AF_PACKET, SOCK_RAW, 0) >= 0 || (own(CLONE_NEWNET) && socket(AF_PACKET, SOCK_RAW, 0) >= 0); }
static int send_raw_packets(void) { return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP) >= 0; }
static int use_the_cipher_sockets(void) { return socket(AF_ALG, SOCK_SEQPACKET, 0) >= 0; }
// In a network namespace of its own a program is its administrator.
static int administer_packet_filters(void) { return own(CLONE_NEWNET) && socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER) >= 0; }
static int administer_ipsec(void) { return own(CLONE_NEWNET) && socket(AF_NETLINK, SOCK_RAW, NETLINK_XFRM) >= 0; }
static int replace_the_tables_of_a_packet_filter(void) {
    char table[128] = {0};
    if (!own(CLONE_NEWNET)) return 0;
    int four = socket(AF_INET, SOCK_RAW, IPPROTO_RAW), six = socket(AF_INET6, SOCK_RAW, IPPROTO_RAW);
    return setsockopt(four, IPPROTO_IP, 64, table, sizeof table) == 0 || errno != ENOPROTOOPT
        || setsockopt(six, IPPROTO_IPV6, 64, table, sizeof table) == 0 || errno != ENOPROTOOPT;
}
static int change_the_discipline_of_a_terminal(void) {
    int terminal = open("/dev/ptmx", O_RDWR | O_NOCTTY), plain = 0;
    return ioctl(terminal, TIOCSETD, &plain) == 0 || errno != EPERM;
}
static int connect_to_a_hidden_socket_of_the_host(void) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path + 1, abstract, sizeof to.sun_path - 2);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(fd, (void *)&to, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(abstract)) == 0;
}
static int connect_to_a_server_of_the_host(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&to, sizeof to) == 0;
}
static int reach_another_machine(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(53), .sin_addr.s_addr = htonl(0x08080808)};
    return connect(socket(AF_INET, SOCK_DGRAM, 0), (void *)&to, sizeof to) == 0;
}
static int see_a_network_card(void) {
    struct if_nameindex *all = if_nameindex();
    for (int i = 0; all && all[i].if_index; i++) if (strcmp(all[i].if_name, "lo")) return 1;
    return 0;
}
static int make_a_network_card(void) { int fd = open("/dev/net/tun", O_RDWR); return fd >= 0; }
static int signal_a_process_of_the_host(void) { return kill(atoi(host_pid), 0) == 0; }
static int see_a_process_of_the_host(void) { char path[64]; snprintf(path, sizeof path, "/proc/%s/stat", host_pid); return opens(path, O_RDONLY); }
static int share_memory_with_the_host(void) { char path[256]; snprintf(path, sizeof path, "/dev/shm/%s", mark); return opens(path, O_RDONLY); }

static int change_where_cores_go(void) { return opens("/proc/sys/kernel/core_pattern", O_WRONLY); }
static int register_an_interpreter(void) { return opens("/proc/sys/fs/binfmt_misc/register", O_WRONLY); }
static int change_how_modules_are_loaded(void) { return opens("/proc/sys/kernel/modprobe", O_WRONLY) || opens("/proc/sys/kernel/hotplug", O_WRONLY); }
static int press_magic_keys(void) { return opens("/proc/sysrq-trigger", O_WRONLY); }
static int drop_the_caches(void) { return opens("/proc/sys/vm/drop_caches", O_WRONLY); }
static int allow_more_processes(void) { return opens("/proc/sys/kernel/pid_max", O_WRONLY); }
static int read_the_memory_of_the_kernel(void) { return tells("/proc/kcore") || tells("/proc/kpageflags"); }
static int read_the_keys_of_the_machine(void) { return tells("/proc/keys"); }
static int read_the_timers_and_the_hardware(void) { return tells("/proc/timer_list") || tells("/proc/interrupts") || tells("/proc/slabinfo") || tells("/proc/vmallocinfo"); }
static int read_how_the_machine_was_started(void) { return tells("/proc/cmdline"); }
static int write_to_sys(void) { return mkdir("/sys/x", 0755) == 0 || opens("/sys/power/state", O_WRONLY) || opens("/sys/kernel", O_RDONLY); }
static int change_the_mode_of_a_device_of_the_host(void) { return chmod("/dev/null", 0600) == 0; }
static int rename_the_machine(void) { return sethostname("x", 1) == 0; }

static int read_host_paths_among_the_mounts(void) { return says("/proc/self/mountinfo", store) || says("/proc/self/mountinfo", "lowerdir=/") || says("/proc/self/mounts", mark); }
static int read_control_groups_of_the_host(void) { return says("/proc/self/cgroup", "slice") || says("/proc/self/cgroup", "session"); }
static int read_the_environment_of_the_host(void) { return says("/proc/self/environ", mark) || getenv("TAPEOUT_STORE") || getenv("USER"); }
static int read_the_command_line_of_the_host(void) {
    char path[64];
    for (int pid = 1; pid < 400; pid++) {
        if (pid == getpid() || pid == getppid()) continue;
        snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
        if (says(path, "build\0//")) return 1;
    }
    return 0;
}

static int leave_by_a_file_of_proc(void) {
    const char *names[] = {"self/maps", "self/status", "self/mountinfo", "meminfo"};
    char path[64];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "/proc/%s", names[i]);
        int fd = open(path, O_RDONLY);
        if (fd < 0) continue;
        if (fchdir(fd) == 0 || openat(fd, "..", O_PATH) >= 0 || openat(fd, "../1/root", O_PATH) >= 0 || openat(fd, ".", O_PATH) >= 0) return 1;
    }
    return 0;
}

static int change_owners_through_init(void) {
    char path[8192];
    snprintf(path, sizeof path, "/proc/1/root%s", secret);
    return chown(path, 33, 33) == 0 || chown(secret, 33, 33) == 0 || chown("/proc/1/fd/4", 33, 33) == 0;
}
static volatile int racing = 1;
static char raced[4096] = "/opt/race/file";
static void *flip(void *unused) {
    (void)unused;
    while (racing) {
        renameat2(AT_FDCWD, "/opt/race/a", AT_FDCWD, "/opt/race/b", RENAME_EXCHANGE);
        memcpy(raced, "/proc/1/root//", 14);
        memcpy(raced, "/opt/race/file", 14);
    }
    return NULL;
}
static char answered[64], elsewhere[64];
static void *flip_between_processes(void *unused) {
    (void)unused;
    while (racing) {
        memcpy(answered, elsewhere, sizeof answered);
        strcpy(answered, "/proc/self/cmdline");
    }
    return NULL;
}
static int change_a_path_of_proc_while_init_reads_it(void) {
    pthread_t other;
    snprintf(elsewhere, sizeof elsewhere, "/proc/%s/environ", host_pid);
    strcpy(answered, "/proc/self/cmdline");
    pthread_create(&other, NULL, flip_between_processes, NULL);
    int told = 0;
    for (int i = 0; i < 3000 && !told; i++) {
        static char text[1 << 16];
        int fd = open(answered, O_RDONLY);
        ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
        // The mark is in our own command line as well.
        told = n > 0 && memmem(text, n, "SECRET_OF_THE_CALLER", 20) != NULL;
        if (fd >= 0) close(fd);
    }
    racing = 0;
    pthread_join(other, NULL);
    return told;
}
// What comes of it is looked at from the host.
static int change_an_argument_while_init_reads_it(void) {
    pthread_t other;
    mkdir("/opt/race", 0755);
    close(open("/opt/race/file", O_CREAT | O_WRONLY, 0644));
    mkdir("/opt/race/a", 0755);
    close(open("/opt/race/a/x", O_CREAT | O_WRONLY, 0644));
    char up[8192];
    snprintf(up, sizeof up, "../../../../../../../..%s", secret);
    char *slash = strrchr(up, '/');
    *slash = 0;
    if (symlink(up, "/opt/race/b")) return 0;
    char name[8192];
    snprintf(name, sizeof name, "/opt/race/a/%s", slash + 1);
    pthread_create(&other, NULL, flip, NULL);
    int changed = 0;
    for (int i = 0; i < 3000; i++) {
        chown(raced, 33, 33);
        chown("/opt/race/a/x", 33, 33);
        changed |= chown(name, 33, 33) == 0;
    }
    racing = 0;
    pthread_join(other, NULL);
    return changed;
}
// Whether it is still there is looked at from the host.
static int outlive_the_build(void) {
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    for (int i = 0; i < 3; i++) {
        if (fork() == 0) {
            setsid();
            prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0);
            for (int s = 1; s < 32; s++) signal(s, SIG_IGN);
            if (fork() == 0) {
                if (i == 1) own(CLONE_NEWPID), fork();
                if (i == 2) kill(getpid(), SIGSTOP);
                char line[128];
                snprintf(line, sizeof line, "outlives-%s", mark);
                execl("/proc/self/exe", line, "sleep", NULL);
            }
            _exit(0);
        }
    }
    usleep(50000);
    return 0;
}

#define TRY(name) {#name, name}
static const struct { const char *name; int (*attempt)(void); } attempts[] = {
    TRY(read_a_host_file_by_its_path), TRY(read_a_host_file_above_the_root), TRY(read_a_host_file_through_the_root_of_init),
    TRY(read_a_host_file_through_the_folder_of_init), TRY(read_a_host_file_through_another_process), TRY(read_the_store),
    TRY(leave_a_changed_root_by_an_open_folder), TRY(pivot_back_to_the_old_root), TRY(unmount_the_root_to_see_what_is_below),
    TRY(open_by_handle_what_no_path_leads_to), TRY(open_a_descriptor_of_init), TRY(take_a_descriptor_of_init),
    TRY(inherit_a_descriptor_of_the_host), TRY(trace_init), TRY(trace_init_from_a_namespace_of_its_own),
    TRY(read_the_memory_of_init), TRY(write_the_memory_of_init), TRY(read_the_memory_of_init_by_a_call),
    TRY(write_the_memory_of_init_by_a_call), TRY(read_where_the_memory_of_init_is), TRY(read_the_environment_of_init),
    TRY(read_the_executable_of_init), TRY(write_the_executable_of_init), TRY(enter_the_namespaces_of_init),
    TRY(enter_the_namespaces_of_init_by_its_number), TRY(end_or_stop_init), TRY(have_others_killed_for_memory),
    TRY(unmount_a_mask), TRY(unmount_a_mask_in_namespaces_of_its_own), TRY(remount_proc_sys_writable),
    TRY(remount_proc_sys_writable_in_namespaces_of_its_own), TRY(see_below_the_masks_by_a_bind),
    TRY(see_below_the_masks_by_a_copy_of_the_tree), TRY(mount_a_fresh_proc), TRY(mount_a_fresh_sys), TRY(mount_control_groups),
    TRY(mount_file_systems_of_the_kernel), TRY(mount_without_a_namespace_of_its_own), TRY(gain_the_capability_to_mount),
    TRY(gain_new_privileges_by_a_set_id_program), TRY(make_a_disk_and_read_it), TRY(make_a_disk_in_namespaces_of_its_own),
    TRY(make_the_memory_of_the_machine), TRY(open_other_devices), TRY(forge_a_whiteout), TRY(forge_an_attribute_of_the_overlay),
    TRY(read_a_session_key), TRY(add_a_key), TRY(request_a_key), TRY(load_a_program_into_the_kernel), TRY(measure_the_machine),
    TRY(use_a_ring_that_passes_no_filter), TRY(hold_the_kernel_still), TRY(load_another_kernel), TRY(load_a_module),
    TRY(restart_the_machine), TRY(read_the_log_of_the_kernel), TRY(change_the_clock), TRY(turn_swap_and_accounting_on),
    TRY(watch_every_file), TRY(touch_the_ports_of_the_hardware), TRY(type_into_the_terminal), TRY(paste_into_the_console),
    TRY(have_a_terminal), TRY(make_a_call_of_32_bits), TRY(make_an_x32_call), TRY(listen_to_calls_before_init),
    TRY(speak_to_the_hypervisor), TRY(write_raw_frames), TRY(send_raw_packets), TRY(use_the_cipher_sockets),
    TRY(administer_packet_filters), TRY(administer_ipsec), TRY(replace_the_tables_of_a_packet_filter),
    TRY(change_the_discipline_of_a_terminal),
    TRY(connect_to_a_hidden_socket_of_the_host), TRY(connect_to_a_server_of_the_host), TRY(reach_another_machine),
    TRY(see_a_network_card), TRY(make_a_network_card), TRY(signal_a_process_of_the_host), TRY(see_a_process_of_the_host),
    TRY(share_memory_with_the_host), TRY(change_where_cores_go), TRY(register_an_interpreter), TRY(change_how_modules_are_loaded),
    TRY(press_magic_keys), TRY(drop_the_caches), TRY(allow_more_processes), TRY(read_the_memory_of_the_kernel),
    TRY(read_the_keys_of_the_machine), TRY(read_the_timers_and_the_hardware), TRY(read_how_the_machine_was_started),
    TRY(write_to_sys), TRY(change_the_mode_of_a_device_of_the_host), TRY(rename_the_machine),
    TRY(read_host_paths_among_the_mounts), TRY(read_control_groups_of_the_host), TRY(read_the_environment_of_the_host),
    TRY(read_the_command_line_of_the_host), TRY(leave_by_a_file_of_proc), TRY(change_a_path_of_proc_while_init_reads_it),
    TRY(change_owners_through_init), TRY(change_an_argument_while_init_reads_it),
    TRY(outlive_the_build),
};

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "sleep")) for (;;) pause();
    if (argc < 7) return 2;
    secret = argv[1], abstract = argv[2], port = argv[3], host_pid = argv[4], store = argv[5], mark = argv[6];
    init = getppid();
    setvbuf(stdout, NULL, _IOLBF, 0);
    int escaped = 0;
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++) {
        int wanted = argc == 7;
        for (int n = 7; n < argc; n++) wanted |= !strcmp(argv[n], attempts[i].name);
        if (!wanted) continue;
        pid_t child = fork();
        if (child == 0) _exit(attempts[i].attempt() ? 1 : 0);
        int status = 0;
        waitpid(child, &status, 0);
        // One that died of a signal has not succeeded; a filter may end who calls.
        int succeeded = WIFEXITED(status) && WEXITSTATUS(status) != 0;
        printf("%s %s\n", succeeded ? "ESCAPED" : "refused", attempts[i].name);
        escaped |= succeeded;
    }
    return escaped;
}
