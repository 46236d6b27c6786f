const isOdd = require("is-odd"), semver = require("semver");
if (!isOdd(41) || !semver.lt("1.0.0", "2.0.0")) process.exit(1);
console.log("hello from Node.js");
