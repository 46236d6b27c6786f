#ifndef GREETING_H
#define GREETING_H

/* Says hello to somebody. */
void greet(const char *name);

#endif
