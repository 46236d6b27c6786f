#ifndef MOON_H
#define MOON_H

#include <time.h>

/* How much of the moon is lit, from 0 to 1. */
double moon_light(time_t when);

#endif
