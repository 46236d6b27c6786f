#include "moon.h"

#include <math.h>

static const double pi = 3.14159265358979;
static const double new_moon = 947182440; /* 2000-01-06 18:14 UTC */
static const double month = 29.530588853 * 86400;

double moon_light(time_t when)
{
    double phase = fmod(difftime(when, 0) - new_moon, month) / month;

    return (1 - cos(2 * pi * phase)) / 2;
}
