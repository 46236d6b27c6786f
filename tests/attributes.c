/* Attributes and calls that a rule of busybox has no program for. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

/* setfacl: FILE, "access" or "default", then entries TAG:RIGHTS:ID as numbers (linux/posix_acl.h). */
static int acl(int n, char **words) {
    unsigned char list[256] = {2};
    char name[64];
    snprintf(name, sizeof name, "system.posix_acl_%s", words[1]);
    size_t end = 4;
    for (int i = 2; i < n; i++, end += 8) {
        int tag, rights, id;
        if (sscanf(words[i], "%d:%d:%d", &tag, &rights, &id) != 3) return 2;
        list[end] = tag, list[end + 2] = rights;
        for (int byte = 0; byte < 4; byte++) list[end + 4 + byte] = (unsigned)id >> (8 * byte);
    }
    if (setxattr(words[0], name, list, end, 0) == 0) return 0;
    printf("setxattr: %s\n", strerror(errno));
    return 1;
}

/* getfacl -n: FILE, "access" or "default", as `acl` takes it. */
static int acl_of(char **words) {
    unsigned char list[4096];
    char name[64];
    snprintf(name, sizeof name, "system.posix_acl_%s", words[1]);
    /* As libacl and coreutils ask: for the size alone, and with too little room. */
    ssize_t whole = getxattr(words[0], name, NULL, 0), size = getxattr(words[0], name, list, sizeof list);
    if (size < 0) return printf("%s\n", strerror(errno)), 0;
    if (whole != size || getxattr(words[0], name, list, 8) >= 0 || errno != ERANGE) return 1;
    for (unsigned char *e = list + 4; e < list + size; e += 8) {
        unsigned id = e[4] | e[5] << 8 | e[6] << 16 | (unsigned)e[7] << 24;
        printf("%s%d:%d:%d", e > list + 4 ? " " : "", e[0] | e[1] << 8, e[2] | e[3] << 8, (int)id);
    }
    printf("\n");
    return 0;
}

/* chown as a program of 32 bits calls it: call 182 of the i386 table. */
static int chown32(char **words) {
#ifdef __x86_64__
    static char path[64] __attribute__((aligned(16)));
    strncpy(path, words[0], sizeof path - 1);
    long answer;
    __asm__ volatile("int $0x80" : "=a"(answer) : "a"(182L), "b"(path), "c"(33L), "d"(33L) : "memory");
    printf("chown32: %s\n", (int)answer < 0 ? strerror(-(int)answer) : "done");
    return (int)answer != 0;
#else
    return 1;
#endif
}

int main(int n, char **words) {
    if (n > 3 && strcmp(words[1], "acl") == 0) return acl(n - 2, words + 2);
    if (n == 4 && strcmp(words[1], "acl-of") == 0) return acl_of(words + 2);
    if (n == 3 && strcmp(words[1], "chown32") == 0) return chown32(words + 2);
    return 2;
}
